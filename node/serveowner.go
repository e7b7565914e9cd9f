package node

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/meshdns/meshdns/funnel"
)

// asOwner opens what an entry's target is with the rights of whom it belongs to (S20). What belongs to root, or to the user that this
// process runs as, is opened as by itself.
func (n *Node) asOwner(e funnel.Entry, do func() error) error {
	own := os.Geteuid()
	switch {
	case e.Owner == 0 || int(e.Owner) == own:
		return do()
	case own != 0:
		return hinted(ErrNotPermitted, fmt.Errorf("opening what user %d serves: only root can act for others", e.Owner), "")
	}
	err := actAs(e.Owner, do)
	if errors.Is(err, errors.ErrUnsupported) {
		return hinted(ErrNotPermitted, fmt.Errorf("opening what user %d serves: %w", e.Owner, err), "")
	}
	return err
}

// serveUsers are the users who may serve. One that does not exist is nobody's.
func (n *Node) serveUsers() []uint32 {
	var list []uint32
	for _, name := range n.cfg.Servers {
		u, err := user.Lookup(name)
		if err == nil {
			var uid uint64
			if uid, err = strconv.ParseUint(u.Uid, 10, 32); err == nil && uid > 0 {
				list = append(list, uint32(uid))
			}
		}
		if err != nil {
			n.report("servers: %v", err)
		}
	}
	return list
}

// mayTouch reports whether a caller may see what stands behind something that is served, and end it.
func (c caller) mayTouch(s served) bool {
	return c.operator || c.serves && s.Owner == c.uid && s.from != fromConfig
}
