package resolver

import (
	"context"
	"net"
	"sync/atomic"
)

// guests are clients that share this machine and not its names: containers. They have a table and a server for TCP of
// their own, so that they can be told less, and so that connections of theirs take no room from the machine's programs.
type guests struct {
	table atomic.Pointer[Table]
	tcp   *tcpServer
}

// SetGuestTable replaces the local names that guests are told. A table with the zones of the tailnet and without records
// has none of its names exist for them; they are not forwarded either.
func (r *Resolver) SetGuestTable(t *Table) {
	if t == nil {
		t = &Table{}
	}
	r.guest.table.Store(t)
}

// ServeGuestUDP is ServeUDP for a socket that guests ask.
func (r *Resolver) ServeGuestUDP(ctx context.Context, conn *net.UDPConn) error {
	return r.serveUDP(ctx, conn, &r.guest.table)
}

// ServeGuestTCP is ServeTCP for a listener that guests ask.
func (r *Resolver) ServeGuestTCP(ctx context.Context, ln net.Listener) error {
	return r.guest.tcp.serve(ctx, ln)
}
