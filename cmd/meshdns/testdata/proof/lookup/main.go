// Command lookup prints each name with its IPv4 addresses, as Go's resolver finds them: its own, or with cgo the C
// library's.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	for _, name := range os.Args[1:] {
		addrs, err := net.DefaultResolver.LookupIP(ctx, "ip4", name)
		fmt.Println(name, addrs, err)
	}
}
