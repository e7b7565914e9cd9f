package node

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/meshdns/meshdns/funnel"
)

// passTime is how long the site behind gateway.fallback may take to be reached.
const passTime = 5 * time.Second

// passTo passes connections on to a TCP server, bytes as they come.
func passTo(target string, log *slog.Logger) funnel.Handler {
	address := strings.TrimPrefix(target, "tcp://")
	return func(ctx context.Context, conn net.Conn, _ funnel.Hello) {
		dialer := net.Dialer{Timeout: passTime}
		site, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			log.Warn("gateway.fallback is not reached", "err", err)
			return
		}
		stop := context.AfterFunc(ctx, func() { site.Close() })
		defer stop()
		passBoth(conn, site)
	}
}

// passBoth copies both ways until both sides have ended, and closes b.
func passBoth(a, b net.Conn) {
	defer b.Close()
	var both sync.WaitGroup
	both.Go(func() { passOne(a, b) })
	both.Go(func() { passOne(b, a) })
	both.Wait()
}

// passOne copies until src ends, and tells dst of that end.
func passOne(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		dst.Close() // and with it the other way
	}
}
