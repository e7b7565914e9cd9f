//go:build !linux

package node

import (
	"context"
	"errors"
)

// readPortalHint knows nothing of other systems' DHCP clients; probes tell there.
func readPortalHint(context.Context, []wayOut) portalHint { return portalHint{} }

// defaultGateways is not known: the network's DNS servers tell one network from another.
func defaultGateways() ([]wayOut, error) { return nil, errors.ErrUnsupported }

// followRoutes has nothing to follow.
func followRoutes(ctx context.Context, _ func()) { <-ctx.Done() }
