package node

import (
	"errors"
	"fmt"
	"os"

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
