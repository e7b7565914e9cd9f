package osconfig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/windows"
	winreg "golang.org/x/sys/windows/registry"
)

// nativeMode says that the DNS client goes by the registry.
const nativeMode = modeNRPT

// edge is this Windows.
func edge() windowsEdge { return windowsEdge{registry: hklm{}, links: linksUp, notify: notifyClient} }

// hklm is HKEY_LOCAL_MACHINE.
type hklm struct{}

func (hklm) keys(path string) ([]string, error) {
	key, err := winreg.OpenKey(winreg.LOCAL_MACHINE, path, winreg.READ)
	if err != nil {
		return nil, err
	}
	defer key.Close()
	return key.ReadSubKeyNames(-1)
}

func (hklm) get(path, name string) (regValue, error) {
	key, err := winreg.OpenKey(winreg.LOCAL_MACHINE, path, winreg.QUERY_VALUE)
	if err != nil {
		return regValue{}, err
	}
	defer key.Close()
	_, kind, err := key.GetValue(name, nil)
	if err != nil {
		return regValue{}, err
	}
	switch kind {
	case winreg.SZ, winreg.EXPAND_SZ:
		text, _, err := key.GetStringValue(name)
		v := regValue{Kind: regString, Text: text}
		if kind == winreg.EXPAND_SZ {
			v.Kind = regExpand
		}
		return v, err
	case winreg.MULTI_SZ:
		list, _, err := key.GetStringsValue(name)
		return regValue{Kind: regStrings, List: list}, err
	case winreg.DWORD:
		number, _, err := key.GetIntegerValue(name)
		return regValue{Kind: regNumber, Number: uint32(number)}, err
	}
	return regValue{}, fmt.Errorf("it is a value of type %d", kind)
}

func (hklm) set(path, name string, v regValue) error {
	key, _, err := winreg.CreateKey(winreg.LOCAL_MACHINE, path, winreg.SET_VALUE)
	if err != nil {
		return err
	}
	defer key.Close()
	switch v.Kind {
	case regString:
		return key.SetStringValue(name, v.Text)
	case regExpand:
		return key.SetExpandStringValue(name, v.Text)
	case regStrings:
		return key.SetStringsValue(name, v.List)
	case regNumber:
		return key.SetDWordValue(name, v.Number)
	}
	if err := key.DeleteValue(name); err != nil && !errors.Is(err, winreg.ErrNotExist) {
		return err
	}
	return nil
}

func (hklm) removeKey(path string) error { return winreg.DeleteKey(winreg.LOCAL_MACHINE, path) }

// linksUp are the links that are up, as the registry names them, by their metrics.
func linksUp() ([]string, error) {
	const flags = windows.GAA_FLAG_SKIP_UNICAST | windows.GAA_FLAG_SKIP_ANYCAST | windows.GAA_FLAG_SKIP_MULTICAST | windows.GAA_FLAG_SKIP_DNS_SERVER
	size := uint32(16 << 10)
	var buffer []byte
	for range 4 { // links may appear between two calls
		buffer = make([]byte, size)
		err := windows.GetAdaptersAddresses(windows.AF_UNSPEC, flags, 0, (*windows.IpAdapterAddresses)(unsafe.Pointer(&buffer[0])), &size)
		if err == nil {
			break
		}
		if !errors.Is(err, windows.ERROR_BUFFER_OVERFLOW) || size > 1<<20 {
			return nil, err
		}
		buffer = nil
	}
	if buffer == nil {
		return nil, windows.ERROR_BUFFER_OVERFLOW
	}
	type link struct {
		guid   string
		metric uint32
	}
	var up []link
	for a := (*windows.IpAdapterAddresses)(unsafe.Pointer(&buffer[0])); a != nil; a = a.Next {
		if a.OperStatus == windows.IfOperStatusUp && a.IfType != windows.IF_TYPE_SOFTWARE_LOOPBACK {
			up = append(up, link{windows.BytePtrToString(a.AdapterName), a.Ipv4Metric})
		}
	}
	slices.SortStableFunc(up, func(a, b link) int { return cmp.Compare(a.metric, b.metric) })
	var guids []string
	for _, l := range up {
		guids = append(guids, l.guid)
	}
	return guids, nil
}

// notifyClient has the DNS client read its settings anew and forget its cache, and with policy first has group policy
// read anew.
func notifyClient(_ context.Context, policy bool) error {
	if policy {
		const force = 1 // RP_FORCE
		refresh := windows.NewLazySystemDLL("userenv.dll").NewProc("RefreshPolicyEx")
		if err := refresh.Find(); err != nil {
			return err
		}
		if ok, _, err := refresh.Call(1, force); ok == 0 {
			return fmt.Errorf("refreshing group policy: %w", err)
		}
	}
	if err := paramChange("Dnscache"); err != nil {
		return err
	}
	flush := windows.NewLazySystemDLL("dnsapi.dll").NewProc("DnsFlushResolverCache")
	if err := flush.Find(); err != nil {
		return err
	}
	if ok, _, err := flush.Call(); ok == 0 {
		return fmt.Errorf("flushing the DNS client's cache: %w", err)
	}
	return nil
}

// paramChange tells a service that its settings in the registry have changed.
func paramChange(name string) error {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return fmt.Errorf("opening the service manager: %w", err)
	}
	defer windows.CloseServiceHandle(manager)
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	service, err := windows.OpenService(manager, text, windows.SERVICE_PAUSE_CONTINUE)
	if err != nil {
		return fmt.Errorf("opening the service %s: %w", name, err)
	}
	defer windows.CloseServiceHandle(service)
	var status windows.SERVICE_STATUS
	if err := windows.ControlService(service, windows.SERVICE_CONTROL_PARAMCHANGE, &status); err != nil {
		return fmt.Errorf("telling the service %s: %w", name, err)
	}
	return nil
}
