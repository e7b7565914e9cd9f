// Package bench measures a tailnet: a thousand nodes on one gateway, a stream between two nodes beside wireguard-go, and
// certificates. It holds no code but its tests, which `make bench-tailnet` and `make bench-certs` run as root, in network
// namespaces of their own.
//
// TestScale: the gateway is a process of the program itself, in each of two modes. The nodes are in one other process on the
// same machine: each has a WireGuard session of its own with the gateway's tunnel and with its relay, joins by an invite, holds
// the map's stream and confirms each map, over a TCP/IP stack that all share. A push is a node that gets another name; its time
// is from the call until a node has the change in hand, for each node of each push. What the nodes' process needs of the
// machine is in all times, and none of it in the gateway's CPU and memory. "At rest" is after some idle seconds, "in pushes"
// and "in joins" the most that was resident meanwhile (VmHWM, which the program's text is in too). Above 200 MiB the test fails.
//
// TestThroughput: two machines with a cable between them (direct), and two with one each to a gateway that passes nothing on by
// itself (relayed). One TCP stream of some seconds a set-up, the set-ups in turns, so that what else the machine does hits all
// of them; the ratio is to the peer's stream of the same round, and its spread that of the middle half of the rounds. CPU is that
// of the processes that hold tunnels. The peers: wireguard-go of the module that meshdns has too, set up as wg-quick does; for
// relayed streams a hub of it, which is what people without a relay have: it decrypts and encrypts again. A node in mode
// userspace streams through its SOCKS proxy; its peer is wireguard-go's own network inside the process, whose stream begins and
// ends there. Both are of one machine: what a wire costs is in none of it.
//
// TestKernelThroughput: the same for the kernel's WireGuard in the lab's virtual machine, beside links that `wg` and `ip` made.
//
// TestCertificates: a name and what is below it in one order, from pebble without its sleeps, in turns: by a node through its
// gateway, two processes of the program, asked as the command asks; by package certs with updates (RFC 2136) to a Knot; and by
// certmagic with the same libdns package, resolver and Knot. It fails if the first takes a second, or the second longer than
// the third. "Measured before" is on the same kind of machine, by hand.
//
// Environment: BENCH_NODES (1000), BENCH_PUSHES (20), BENCH_IDLE seconds (20), BENCH_MODES (tun,userspace); BENCH_ROUNDS (7),
// BENCH_SECONDS a stream (3), BENCH_SETUPS (names separated by commas; empty: all); MESHDNS_BINARY (the program to measure).
package bench
