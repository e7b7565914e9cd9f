package node

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// decoder fills Go values from items and notes everything that does not fit.
type decoder struct {
	problems Problems
	where    map[string]position // if not nil: where each key was given
}

// itemDecoder is a type that reads itself.
type itemDecoder interface {
	decodeItem(d *decoder, it *item, path string)
}

// document reads data into the struct behind v. Keys that data does not give keep their value.
func (d *decoder) document(data []byte, v any) {
	root, problems := parseYAML(data)
	d.problems = append(d.problems, problems...)
	if root != nil {
		d.value(root, "", reflect.ValueOf(v).Elem())
	}
}

// wrong notes that the item does not fit.
func (d *decoder) wrong(it *item, path, msg string) {
	d.problems = append(d.problems, it.at.problem(path, it.text, msg))
}

// into reads it into what v points to.
func (d *decoder) into(it *item, path string, v any) { d.value(it, path, reflect.ValueOf(v).Elem()) }

// value reads it into v, whose path is for messages.
func (d *decoder) value(it *item, path string, v reflect.Value) {
	if d.where != nil {
		d.where[path] = it.at
	}
	if custom, ok := v.Addr().Interface().(itemDecoder); ok {
		custom.decodeItem(d, it, path)
		return
	}
	if it.kind == nullItem {
		return // "key:" alone leaves the default
	}
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(it, path, v.Elem())
	case isText(v.Type()):
		d.scalar(it, path, v)
	case v.Kind() == reflect.Struct:
		d.mapping(it, path, v)
	case v.Kind() == reflect.Map:
		d.table(it, path, v)
	case v.Kind() == reflect.Slice:
		d.list(it, path, v)
	default:
		d.scalar(it, path, v)
	}
}

// isText reports whether values of t are written as one scalar although they are structs.
func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// want reports whether it is of kind k, and notes it if not.
func (d *decoder) want(k kind, it *item, path string) bool {
	if it.kind != k {
		d.wrong(it, path, fmt.Sprintf("want %s, not %s", k, it.kind))
	}
	return it.kind == k
}

func (d *decoder) mapping(it *item, path string, v reflect.Value) {
	if !d.want(mappingItem, it, path) {
		return
	}
	for i, key := range it.keys {
		if f, ok := fieldByKey(v, key.text); ok {
			d.value(it.items[i], join(path, key.text), f)
			continue
		}
		d.unknown(key, path, keysOf(v.Type()))
	}
}

// unknown notes a key that nobody reads, with the one that was perhaps meant.
func (d *decoder) unknown(key *item, path string, known []string) {
	p := key.at.problem("key", join(path, key.text), "unknown")
	if near := nearest(key.text, known); near != "" {
		p.Msg = fmt.Sprintf("unknown; did you mean %s?", near)
	} else {
		p.Advice = "keys here: " + strings.Join(known, ", ")
	}
	d.problems = append(d.problems, p)
}

// table reads a mapping whose keys the user chooses.
func (d *decoder) table(it *item, path string, v reflect.Value) {
	if !d.want(mappingItem, it, path) {
		return
	}
	m := reflect.MakeMapWithSize(v.Type(), len(it.keys))
	for i, key := range it.keys {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(it.items[i], join(path, key.text), elem)
		m.SetMapIndex(reflect.ValueOf(key.text), elem)
	}
	v.Set(m)
}

// list reads a sequence; a value alone is a list of one.
func (d *decoder) list(it *item, path string, v reflect.Value) {
	items := it.items
	switch it.kind {
	case scalarItem:
		items = []*item{it}
	case mappingItem:
		d.wrong(it, path, "want a list, not a mapping")
		return
	}
	s := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, elem := range items {
		p := fmt.Sprintf("%s[%d]", path, i)
		if elem.kind == nullItem {
			d.wrong(elem, p, "empty")
		}
		d.value(elem, p, s.Index(i))
	}
	v.Set(s)
}

// scalar reads one word. A list or mapping in its place is wrong.
func (d *decoder) scalar(it *item, path string, v reflect.Value) {
	if !d.want(scalarItem, it, path) {
		return
	}
	if err := setScalar(v, it.text); err != nil {
		d.wrong(it, path, err.Error())
	}
}

// portDNS is the port of an address that is given without one.
const portDNS = 53

// setScalar reads text into v. The error says what was wanted.
func setScalar(v reflect.Value, text string) error {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		dur, err := time.ParseDuration(text)
		if err != nil {
			return errors.New("want a time such as 30s or 5m")
		}
		v.SetInt(int64(dur))
		return nil
	}
	if v.Type() == reflect.TypeFor[netip.AddrPort]() {
		if a, err := netip.ParseAddr(text); err == nil {
			v.Set(reflect.ValueOf(netip.AddrPortFrom(a, portDNS)))
			return nil
		}
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("want %s", typeName(v.Type()))
		}
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		return setBool(v, text)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("want a number from 0 to %d", uint64(1)<<v.Type().Bits()-1)
		}
		v.SetUint(n)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return errors.New("want a number")
		}
		v.SetInt(n)
	case reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return errors.New("want a number")
		}
		v.SetFloat(n)
	default:
		return errors.New("cannot be set")
	}
	return nil
}

// setBool takes YAML 1.1's words too: they are what people write.
func setBool(v reflect.Value, text string) error {
	switch strings.ToLower(text) {
	case "true", "on", "yes":
		v.SetBool(true)
	case "false", "off", "no":
		v.SetBool(false)
	default:
		return errors.New("want true or false")
	}
	return nil
}

// fieldByKey finds the field of struct v that key is read into.
func fieldByKey(v reflect.Value, key string) (reflect.Value, bool) {
	t := v.Type()
	for i := range t.NumField() {
		if name, ok := keyOfField(t.Field(i)); ok && name == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// keyOfField is the key that a field is read from. Types of other packages have theirs for JSON alone.
func keyOfField(f reflect.StructField) (string, bool) {
	if name, ok := f.Tag.Lookup("yaml"); ok {
		return name, true
	}
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, name != "" && name != "-"
}

// keysOf lists the keys of a struct type, in its order.
func keysOf(t reflect.Type) []string {
	var keys []string
	for field := range t.Fields() {
		if name, ok := keyOfField(field); ok {
			keys = append(keys, name)
		}
	}
	return keys
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// nearest is the known word that word is most likely a slip of, or "".
func nearest(word string, known []string) string {
	best, bestDistance := "", len(word)/3+1
	for _, k := range known {
		if d := distance(strings.ToLower(word), k); d <= bestDistance && (best == "" || d < bestDistance) {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance counts the characters to insert, delete or replace to make a into b (Levenshtein). Long words are far
// from everything.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// ByteSize is a number of bytes, written as a number or with KiB, MiB or GiB.
type ByteSize int64

// UnmarshalText reads "8MiB", "8 MiB", "512KiB" or "8388608".
func (s *ByteSize) UnmarshalText(text []byte) error {
	number, shift := strings.TrimSpace(string(text)), 0
	for i, unit := range byteUnits() {
		if n, ok := strings.CutSuffix(number, unit); ok {
			number, shift = strings.TrimSpace(n), 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63-shift)
	if err != nil {
		return fmt.Errorf("reading a size: %w", err)
	}
	*s = ByteSize(n << shift)
	return nil
}

// MarshalText writes the size in the largest unit that keeps it exact.
func (s ByteSize) MarshalText() ([]byte, error) {
	units := byteUnits()
	for i, unit := range slices.Backward(units) {
		if shift := 10 * (i + 1); s != 0 && s%(1<<shift) == 0 {
			return []byte(strconv.FormatInt(int64(s>>shift), 10) + unit), nil
		}
	}
	return []byte(strconv.FormatInt(int64(s), 10)), nil
}

func byteUnits() []string { return []string{"KiB", "MiB", "GiB"} }

// typeName is what values of a type are called in messages and in config show.
func typeName(t reflect.Type) string {
	switch t.String() {
	case "netip.Addr":
		return "an IP address"
	case "netip.AddrPort":
		return "an IP address, and a port if it is not 53"
	case "netip.Prefix":
		return "an address range such as 10.8.0.0/24"
	case "node.ByteSize":
		return "a size such as 8MiB"
	case "time.Duration":
		return "a time such as 30s"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	case reflect.String:
		return "text"
	default:
		return "a number"
	}
}
