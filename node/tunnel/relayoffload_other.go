//go:build !linux

package tunnel

import "net"

// joinedControl is room for a control message that only Linux gives.
func joinedControl() int { return 0 }

// growBuffers leaves buffers as large as the system makes them.
func growBuffers(*net.UDPConn) {}

// joinDatagrams reports that the kernel joins none.
func joinDatagrams(*net.UDPConn) bool { return false }

// splitsDatagrams reports that the kernel takes nothing apart.
func splitsDatagrams(*net.UDPConn) bool { return false }

func joinedSize([]byte) int { return 0 }

func joinedSplit([]byte) int { return 0 }

func splitControl(int) []byte { return nil }

func cannotSplit(error) bool { return false }
