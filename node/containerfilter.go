package node

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"
)

// The offsets of a socket filter (linux/filter.h): SKF_NET_OFF is where the IP header begins, whatever the socket's kind.
const (
	filterNetOff  = 0xfff00000
	filterSource  = filterNetOff + 12 // of an IPv4 header
	filterAll     = 0xffffffff        // the whole packet passes
	filterNothing = 0
)

// containerFilter is a socket filter that takes packets which came in by the bridge of a network and from an address in
// it, and drops all others without a word. The kernel does not answer what a filter drops: no ICMP message and no reset
// tells a neighbour that the address is there.
func containerFilter(nets []containerNet) []bpf.Instruction {
	program := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtInterfaceIndex}}
	for _, n := range nets {
		// Each block ends in a verdict, so that the index is still at hand where the next one begins.
		var block []bpf.Instruction
		for _, p := range n.prefixes {
			block = append(block,
				bpf.LoadAbsolute{Off: filterSource, Size: 4},
				bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: binary.BigEndian.Uint32(net.CIDRMask(p.Bits(), 32))},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: addrWord(p.Masked().Addr()), SkipTrue: 1},
				bpf.RetConstant{Val: filterAll},
			)
		}
		block = append(block, bpf.RetConstant{Val: filterNothing})
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(n.index), SkipTrue: uint8(len(block))})
		program = append(program, block...)
	}
	return append(program, bpf.RetConstant{Val: filterNothing})
}

func addrWord(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
