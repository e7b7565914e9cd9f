package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// portTries is how many ports are looked at for one that fits.
const portTries = 50

// ports are those that the gateway and the nodes listen on, all of loopback. They are free when they are chosen; one that another
// program takes meanwhile ends the demo with its name.
type ports struct {
	wireGuard uint16 // and the one above it, which is the relay's
	dns       uint16 // for UDP and TCP
	https     uint16
	http      uint16

	laptopProxy, nasProxy uint16
}

// choosePorts finds free ports.
func choosePorts() (p ports, err error) {
	if p.wireGuard, err = freePort(func(port int) error {
		return errors.Join(isFree("udp", port), isFree("udp", port+1))
	}); err != nil {
		return p, err
	}
	p.dns, err = freePort(func(port int) error { return isFree("udp", port) })
	for _, one := range []*uint16{&p.https, &p.http, &p.laptopProxy, &p.nasProxy} {
		if err == nil {
			*one, err = freePort(func(int) error { return nil })
		}
	}
	return p, err
}

// Ports are chosen where no system takes those of outgoing connections from: one that is free stays so until it is needed.
const (
	firstPort = 10000
	lastPort  = 30000
)

// freePort is a port of TCP that is free, and fits.
func freePort(fits func(port int) error) (uint16, error) {
	var last error
	for range portTries {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if last = errors.Join(isFree("tcp", port), fits(port)); last == nil {
			return uint16(port), nil
		}
	}
	return 0, fmt.Errorf("looking for free ports: %w", last)
}

// isFree says why a port cannot be had.
func isFree(network string, port int) error {
	at := fmt.Sprintf("127.0.0.1:%d", port)
	if network == "udp" {
		conn, err := net.ListenPacket(network, at)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	ln, err := net.Listen(network, at)
	if err != nil {
		return err
	}
	return ln.Close()
}
