// Package bench measures the CPU that meshdns needs for a query beside unbound, dnsmasq, Knot DNS, BIND and Knot
// Resolver, in one run on one machine; it holds no code but its test, which `make bench` runs.
//
// The method: every server is held to core 0; dnsperf and the upstream (Knot DNS with a wildcard zone) run on core 1,
// all on loopback. dnsperf: 8 sockets, 1 thread, 100 queries outstanding, no EDNS. Within a round the servers take
// turns with the same workload, so that what else the machine does hits all of them. CPU is user and system time of the
// server's process, divided by the queries that it answered. Compare ratios to unbound of the same round, of which the
// table has the median and the spread: absolute figures differ from machine to machine and from hour to hour.
//
// The workloads: local (1,000 names of the tailnet), nx (names that the tailnet does not have, each asked once), cached
// (1,000 names from outside, asked before), uncached (names from outside, each asked once) and mixed (20 % local, 70 %
// cached, 10 % fresh).
//
// What the peers do that is not the same work: Knot DNS serves the tailnet's zone alone, as a reference; Knot Resolver
// has no private zone, so it asks its upstream for an unknown name of the tailnet; dnsmasq answers NXDOMAIN without a
// SOA record, and its cache holds at most 10,000 names.
//
// Environment: BENCH_ROUNDS (3), BENCH_SECONDS a run (2), BENCH_SERVERS and BENCH_WORKLOADS (words separated by commas;
// empty: all that are installed), MESHDNS_BINARY (the program to measure).
package bench
