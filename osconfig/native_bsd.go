//go:build dragonfly || freebsd || netbsd || openbsd

package osconfig

// nativeMode says that programs go by /etc/resolv.conf.
const nativeMode = modeDirect
