package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

// words are records in the form KEY=VALUE@REVISION, in the order that they came.
func words(list []record) string {
	var s []string
	for _, r := range list {
		value := string(r.Value)
		if r.Value == nil {
			value = "-"
		}
		s = append(s, fmt.Sprintf("%s=%s@%d", r.Key, value, r.Revision))
	}
	return strings.Join(s, " ")
}

func TestRecordsChangeAllOrNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s := newStore(t, path)
	swap := func(want uint64, conflict bool, changes ...change) {
		t.Helper()
		got, err := s.CompareAndSwap(t.Context(), changes...)
		if got != want || errors.Is(err, errConflict) != conflict || !conflict && err != nil {
			t.Errorf("revision %d, %v; want %d, conflict %t", got, err, want, conflict)
		}
	}
	swap(1, false, change{Key: "a", Value: []byte("1")}, change{Key: "b", Value: []byte("1")})
	swap(0, true, change{Key: "c", Value: []byte("2")}, change{Key: "a", Value: []byte("2")}) // a is there already
	swap(0, true, change{Key: "a", Value: []byte("2"), Revision: 7})
	swap(2, false, change{Key: "a", Value: []byte("2"), Revision: 1}, change{Key: "b", Revision: 1})
	swap(0, true, change{Key: "b", Value: []byte("3"), Revision: 1})
	if _, err := s.CompareAndSwap(t.Context(), change{Key: "big", Value: make([]byte, maxValue+1)}); err == nil {
		t.Error("a record without a bound")
	}
	if all, err := s.Load(t.Context()); err != nil || words(all.List) != "a=2@2" || all.Revision != 2 || !all.Whole {
		t.Errorf("%s, %d, %v", words(all.List), all.Revision, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := openFileStore(path); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("opened twice: %v", err)
	}
	s.Close()
	again := newStore(t, path)
	if all, err := again.Load(t.Context()); err != nil || words(all.List) != "a=2@2" || all.Revision != 2 {
		t.Errorf("opened again: %s, %d, %v", words(all.List), all.Revision, err)
	}
	if all, err := again.Watch(t.Context(), 1); err != nil || !all.Whole {
		t.Errorf("what is not remembered is told whole: %v, %v", all, err)
	}
}

func TestWatchersSeeEveryChangeOnce(t *testing.T) {
	s := newStore(t, filepath.Join(t.TempDir(), "x.db"))
	put := func(key, value string, revision uint64) {
		t.Helper()
		if _, err := s.CompareAndSwap(t.Context(), change{Key: key, Value: []byte(value), Revision: revision}); err != nil {
			t.Fatal(err)
		}
	}
	put("a", "1", 0)
	put("b", "1", 0)
	put("a", "2", 1)
	if got, err := s.Watch(t.Context(), 1); err != nil || words(got.List) != "b=1@2 a=2@3" || got.Revision != 3 {
		t.Errorf("%s, %d, %v", words(got.List), got.Revision, err)
	}
	seen := make(chan string)
	go func() {
		got, err := s.Watch(t.Context(), 3)
		seen <- fmt.Sprint(words(got.List), " ", err)
	}()
	put("c", "1", 0)
	if got := <-seen; got != "c=1@4 <nil>" {
		t.Error(got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Watch(ctx, 4); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits any more: %v", err)
	}
}

func TestAWatcherThatIsFarBehindGetsEverything(t *testing.T) {
	log := make([]record, 0, 8)
	for i := range 4 {
		log = append(log, record{Key: "k", Value: []byte{byte('0' + i)}, Revision: uint64(10 + i)})
	}
	s := newStore(t, filepath.Join(t.TempDir(), "x.db"))
	s.log = log
	for after, whole := range map[uint64]bool{8: true, 9: false, 12: false} {
		got, err := s.Watch(t.Context(), after)
		if err != nil || got.Whole != whole {
			t.Errorf("after %d: %v, %v", after, got, err)
		}
	}
	if got := newest(log, 11); words(got) != "k=3@13" {
		t.Error(words(got))
	}
}

// writerVariable has this test binary write to the store that it names until it is killed.
const writerVariable = "MESHDNS_TEST_STORE"

// A gateway that is killed at any moment has every change that it has said was made, and none in part.
func TestAKilledWriterLosesNothingThatItPromised(t *testing.T) {
	if path := os.Getenv(writerVariable); path != "" {
		writeForEver(t, path)
		return
	}
	path := filepath.Join(t.TempDir(), "x.db")
	for round := range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAKilledWriter", "-test.v")
		cmd.Env = append(os.Environ(), writerVariable+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		promised, lines := uint64(0), bufio.NewScanner(out)
		for n := 0; n < 20+7*round && lines.Scan(); {
			if text, ok := strings.CutPrefix(lines.Text(), "wrote "); ok {
				promised, _ = strconv.ParseUint(text, 10, 64)
				n++
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		s := newStore(t, path)
		all, err := s.Load(t.Context())
		if err != nil || promised == 0 || len(all.List) != 2 || all.Revision < promised || !slices.Equal(all.List[0].Value, all.List[1].Value) {
			t.Errorf("round %d: promised %d, found %s, %v", round, promised, words(all.List), err)
		}
		s.Close()
	}
}

// writeForEver writes two records alike, and says so each time.
func writeForEver(t *testing.T, path string) {
	s, err := openFileStore(path)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(0)
	if len(all.List) > 0 {
		at = all.List[0].Revision
	}
	for {
		value := binary.BigEndian.AppendUint64(nil, at)
		if at, err = s.CompareAndSwap(t.Context(), change{Key: "a", Value: value, Revision: at}, change{Key: "b", Value: value, Revision: at}); err != nil {
			t.Fatal(err)
		}
		fmt.Println("wrote", at)
	}
}

func TestALimitIsAnAddressesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { testLimit(t) })
}

// A copy made while others write holds one moment: all of a change or nothing of it.
func TestASnapshotIsOfOneMoment(t *testing.T) {
	s, err := openFileStore(filepath.Join(t.TempDir(), "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, stop := context.WithCancel(t.Context())
	wrote := make(chan error, 1)
	go func() {
		revision := uint64(0)
		for n := byte(0); ctx.Err() == nil; n++ {
			big := bytes.Repeat([]byte{n}, 20_000) // several pages
			next, err := s.CompareAndSwap(ctx, change{"a", big, revision}, change{"b", big, revision})
			if err != nil {
				wrote <- err
				return
			}
			revision = next
		}
		wrote <- nil
	}()
	for range 20 {
		var b bytes.Buffer
		if err := (&Registry{store: s}).Snapshot(&b); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "copy.db")
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		copied, err := openFileStore(path)
		if err != nil {
			t.Fatal(err)
		}
		all, err := copied.Load(ctx)
		if err != nil || len(all.List) != 0 && (len(all.List) != 2 || !bytes.Equal(all.List[0].Value, all.List[1].Value)) {
			t.Errorf("%d records that do not belong together (%v)", len(all.List), err)
		}
		if err := copied.Close(); err != nil {
			t.Error(err)
		}
	}
	stop()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}
