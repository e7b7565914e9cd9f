// Package bench measures a tailnet. It holds no code but its tests, which `make bench` and `make bench-tailnet` run.
package bench
