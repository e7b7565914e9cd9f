//go:build !linux

package osconfig

import "context"

// followLinks cannot be done here.
func followLinks(context.Context, func()) {}
