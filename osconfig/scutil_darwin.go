package osconfig

// nativeMode says that configd decides whom programs ask, and that its resolv.conf is for people to read. Its programs
// are run by their full paths; nothing else here is macOS' alone.
const nativeMode = modeScutil
