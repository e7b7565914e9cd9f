//go:build (!unix && !windows) || aix || solaris

package osconfig

// nativeMode says that nobody has tried what programs go by.
const nativeMode = modeNone
