package osconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// failure is a way in which taking over a machine's DNS went wrong for users of other programs.
type failure struct {
	number   int
	scenario string
	here     string // what happens here
	tests    string // that show it, divided by spaces; TestProof/NAME are those of cmd/meshdns
	note     string // what of it no test shows; "": nothing
}

func failures() []failure {
	return []failure{
		{1, "the power fails while taken over", "a unit puts the file back before the network is up", "TestDeathAtEverySystemCallIsUndone TestProof/service TestLabPowerCut", ""},
		{2, "`kill -9`, out of memory, a crash", "the service's stop command or the next start puts it back", "TestProof/kills TestProof/resolvedkills TestProof/service", ""},
		{3, "`down` or removal leaves the file", "every way to end puts it back, a removed package too", "TestProof/lifecycle TestProof/service TestProof/package", ""},
		{4, "what is put back is another network's", "the newer file wins, and is learnt from", "TestTheNewerWriterWins TestWhatIsRightNowIsPutBackAndNotWhatWasThen TestProof/restoredirect", ""},
		{5, "a link comes back as a file", "the link itself is recorded and made again", "TestEveryShapeIsTakenOverAndComesBack TestProof/shapes", ""},
		{6, "writing through the link destroys a manager's file", "a link is never followed to write", "TestMakingDoesNotFollowWhatLiesInTheWay TestEveryShapeIsTakenOverAndComesBack", ""},
		{7, "questions run in a loop", "no file beside systemd-resolved; own addresses are never upstreams", "TestProof/resolvedloop TestProof/nmloop TestProof/nmdnsmasqloop TestAFileOfOursWhoseJournalIsLostIsNoLoop", ""},
		{8, "systemd-resolved keeps our address after the file is back", "it is asked, and made to forget it", "TestProof/healed TestProof/restarted", ""},
		{9, "systemd-resolved runs, the link leads past it", "its link is told, and who cannot see it is named", "TestDecide TestWhoReadsPastSystemdResolved TestProof/resolvedloop", ""},
		{10, "systemd-resolved starts later", "the change moves there", "TestAManagerThatAppearsGetsTheFile TestProof/followed", ""},
		{11, "link settings are lost (suspend, restarts)", "read back and told again", "TestWhatAManagerLostItIsToldAgain TestWhatSystemdResolvedMayLack TestProof/followed", ""},
		{12, "no server is known at boot", "waited for, and learnt when there is one; the last good ones stay", "TestABaseOfNoServersIsNoNews TestServersAreLearntWithoutATakeover TestALinkThatLedNowhereIsFollowed", ""},
		{13, "a DHCP renewal overwrites the file", "written again, and the new servers are learnt", "TestAnOverwrittenFileIsWrittenAgainAndLearntFrom TestProof/dhclient TestProof/udhcpc TestProof/dhcpcd TestProof/ifupdown", ""},
		{14, "two programs overwrite each other for ever", "a budget, then pauses, then it is the other's until that is quiet", "TestAWarForTheFileIsNotFoughtForEver TestBudget TestALostWarIsYieldedAndTriedAgainInPeace", ""},
		{15, "a mounted file in a container cannot be replaced", "overwritten in place, with a journal", "TestAMountIsOverwrittenInPlace TestDeathAtEverySystemCallOnAMountIsUndone TestProof/shapes TestProof/embedded", ""},
		{16, "a read-only or immutable file", "left alone, said so; the stub answers", "TestWhatTheKernelForbidsIsRefused TestDecide TestProof/shapes", ""},
		{17, "the umask takes the file from other users", "mode 0644 whatever the umask", "TestTheUmaskTakesTheFileFromNobody TestProof/shapes", ""},
		{18, "an SELinux label is lost", "every `security.*` attribute is carried over", "TestASecurityLabelComesAlong TestAttributesComeAndGo", "SELinux itself was not run"},
		{19, "snaps and AppArmor cannot follow an odd link", "a regular file is written, never a link", "TestEveryShapeIsTakenOverAndComesBack", "snapd and AppArmor were not run"},
		{20, "Debian's resolvconf blends servers; systemd's alias of it", "a record of a loopback server, which is exclusive; the alias is known by its link", "TestDebiansRecordIsGivenAndTakenBack TestFactsAreGathered TestProof/resolvconf", ""},
		{21, "openresolv leaves an empty file, refuses one that was edited", "what came of it is read back; the file is in the journal", "TestARecordThatDoesNotWorkIsTakenBack TestARecordsDeathAtEveryStepIsUndone TestProof/openresolv", ""},
		{22, "two VPNs put back each other's files", "only what is ours is put back, whoever leaves first", "TestTheNewerWriterWins TestJudge TestTwoVPNsLeaveInAnyOrder TestABackupThatNamesUsIsMended TestProof/vpnc TestProof/vpnwg TestProof/vpnwgopenresolv TestProof/vpnovpnresolved", ""},
		{23, "options and search list are lost", "carried over", "TestOurFileCarriesOver TestASearchListStaysShortEnoughForMusl TestProof/programs", ""},
		{24, "odd lines cost all servers", "read line by line; a bad one costs only itself", "TestParseResolvConf TestProof/shapes", ""},
		{25, "more domains than systemd-resolved takes", "reverse zones go first, and it says so", "TestReverseZonesGoFirstWhereThereIsNoRoom", ""},
		{26, "the system bus hangs, or asking starts a service", "each call has 2 s, holds no lock and starts nothing", "TestASystemdResolvedThatHangsCostsNoMoreThanItsTime TestStatusDoesNotWaitForAManagerThatHangs TestAskingForAnOwnerStartsNobody", ""},
		{27, "NetworkManager says yes and does nothing", "read back; its Reapply is not used", "TestWhatNetworkManagerDoesNotDoIsUndone TestProof/nm TestProof/nmdnsmasq", ""},
		{28, "a drop-in outlives its daemon", "nothing of ours outside the journal and `/run`", "TestNetworkManagerIsToldAndForgets TestProof/nmkills", ""},
		{29, "Proxmox and LXC rewrite the file, its header lies", "comments never count, the file is watched", "TestDecideInTheField TestAnOverwrittenFileIsWrittenAgainAndLearntFrom", ""},
		{30, "a file is touched although nobody wants that", "none is with `dns.os: off`, nor one that is right already", "TestOffChangesNothingAndKnowsTheBase TestProof/look", ""},
	}
}

// readmeTable is the table as the README has it.
func readmeTable() string {
	var b strings.Builder
	b.WriteString("| # | failure | here | tests |\n|---|---|---|---|\n")
	for _, f := range failures() {
		tests := "`" + strings.ReplaceAll(f.tests, " ", "` `") + "`"
		if f.note != "" {
			tests += "; " + f.note
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", f.number, f.scenario, f.here, tests)
	}
	return b.String()
}

// TestThirtyFailures prints the table; the tests that it names have to exist, and the README has to say the same.
func TestThirtyFailures(t *testing.T) {
	t.Log("what broke for others, and the tests that show that it does not here:\n" + readmeTable())
	known := namesOfTests(t)
	for i, f := range failures() {
		if f.number != i+1 {
			t.Errorf("number %d stands at place %d", f.number, i+1)
		}
		for name := range strings.FieldsSeq(f.tests) {
			if !slices.Contains(known, name) {
				t.Errorf("%d: there is no test %s", f.number, name)
			}
		}
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(failures()) != 30 || !strings.Contains(string(readme), "\n"+readmeTable()) {
		t.Error("README.md does not have the table that was just printed")
	}
}

// namesOfTests are those of the tests here, of the proofs, and of the lab's.
func namesOfTests(t *testing.T) []string {
	t.Helper()
	var names []string
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	proof := regexp.MustCompile(`\{name: "(\w+)"`)
	for _, pattern := range []string{"*_test.go", "../cmd/meshdns/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no files %s: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range function.FindAllSubmatch(text, -1) {
				names = append(names, string(found[1]))
			}
			for _, found := range proof.FindAllSubmatch(text, -1) {
				names = append(names, "TestProof/"+string(found[1]))
			}
		}
	}
	return names
}
