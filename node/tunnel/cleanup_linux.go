package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cleanup removes what a tunnel that was killed left on the machine: its link, rules, routes, filters and settings, as noted
// in the state directory. It needs no tunnel, may run twice, and refuses while the tunnel's process runs.
func Cleanup(stateDir string) error {
	// Nothing is made, not even the lock, where there is nothing to remove.
	if _, err := os.Stat(filepath.Join(stateDir, journalName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockState(stateDir)
	if err != nil {
		return err
	}
	return errors.Join(cleanup(lock), lock.release())
}

// remove takes back all that was made, and lets others have the state directory.
func (m *machine) remove() error {
	return errors.Join(cleanup(m.lock), m.lock.release())
}

// cleanup removes what the journal notes. The journal goes last: until then the next try starts again.
func cleanup(lock *stateLock) error {
	j, err := lock.load()
	if err != nil || j == nil {
		return err
	}
	err = errors.Join(removeRules(), removeLink(j), removeRoutes(), removeGuard(), j.resetSysctls())
	if err != nil {
		return fmt.Errorf("removing what the tunnel made: %w", err)
	}
	return lock.drop()
}

func removeRules() error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleListFiltered(family, &netlink.Rule{Table: table, Priority: priority}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PRIORITY)
		if err != nil {
			if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
				continue
			}
			return fmt.Errorf("listing rules: %w", err)
		}
		for _, r := range rules {
			r.Family = family
			if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("deleting the rule for table %d: %w", table, err)
			}
		}
	}
	return nil
}

// removeLink deletes the kernel's WireGuard link. A TUN has gone with its process; one of that name is somebody else's.
func removeLink(j *journal) error {
	if j.Kind == "tun" {
		return nil
	}
	link, err := netlink.LinkByName(j.Link)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding the link %s: %w", j.Link, err)
	}
	if link.Type() != j.Kind || link.Attrs().Group != group {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting the link %s: %w", j.Link, err)
	}
	return nil
}

// removeRoutes empties our table: routes went with the link, unless somebody set others.
func removeRoutes() error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("deleting the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

func removeGuard() error {
	nft, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nf_tables: %w", err)
	}
	tables, err := nft.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil // a kernel without nf_tables has no table of ours
	}
	for _, t := range tables {
		if t.Name != guardTable {
			continue
		}
		nft.DelTable(t)
		if err := nft.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("deleting the table %s: %w", guardTable, err)
		}
	}
	return nil
}

// resetSysctls puts back what stood there, where what stands there is ours.
func (j *journal) resetSysctls() error {
	for path, old := range j.Sysctls {
		now, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(now)) != "1" {
			continue
		}
		if err := os.WriteFile(path, []byte(old), 0o644); err != nil {
			return fmt.Errorf("setting %s back: %w", path, err)
		}
	}
	return nil
}
