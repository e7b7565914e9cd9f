package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// defence is a rule of the threat model, and the tests that try the attack.
type defence struct {
	rule, what, tests string
}

// defences are the rules in the order of their numbers, by which comments name them.
func defences() []defence {
	return []defence{
		{"S1", "a call counts only with its node's control key, from its node's address", "TestAnAddressAloneMakesNoCall TestAKeyCountsFromItsOwnAddressOnly TestAnothersAddressIsNoSource TestAnotherGatewayIsNotSpokenTo TestKeysChangeWhenTheNewOneHasCompletedAHandshake"},
		{"S2", "addresses of the tailnet count on its own link alone", "TestNeighboursCannotSpeakAsTheTailnet TestOnlyOwnAddressesAreReached"},
		{"S3", "keys change by their owner's word; with a lock, only what the owner has signed counts", "TestPinnedKeysChangeOnlyByTheirOwners TestANodeWithOtherKeysIsNoPeer TestALockTakesNothingUnsigned TestALockKeepsInsertedNodesOut TestOnlyTheOwnersSignaturesAreTaken"},
		{"S4", "a gateway's map says names and addresses of its own zone, and never goes back", "TestWhatAGatewayMayNotSay TestAMapNeverGoesBack TestZoneAndRangesStay TestTheEpochNeverGoesBack"},
		{"S5", "who is removed or dropped stays so, also after an old backup; no map is trusted for ever", "TestRemovalRemoves TestARemovedNodesStreamEnds TestARemovedNodeIsNotRelayed TestADroppedNodeStaysDropped TestADropIsTakenBack TestANodeOfAStaticMapIsDropped TestAnOldBackupBringsNoRemovedNodeBack TestAMapOfLongAgoIsNotTrusted TestAMapIsNotTrustedForEver TestARemovedNodeShowsNothing"},
		{"S6", "an invite is good once, for the call to join alone", "TestWhoMayNotJoin TestWhoCannotJoin TestAnInviteReachesTheJoinAlone TestAPlaceThatNobodyTakesIsFreeAgain TestAReusableInviteGivesInvitesForOne"},
		{"S7", "the relay passes packets of nodes to nodes, reads none, and multiplies none", "TestPacketsFromElsewhereAreDropped TestSessionsAreSendersAndIndices TestWhatIsPassedTowardsAnInitiation TestWhoMayNotBePassedTo TestInitiationsAreLimited TestStateIsBounded TestOnlyANewerHandshakeMovesANode TestWhatPolicyForbidsIsNotRelayed"},
		{"S8", "a node names private addresses of its own, and no more than eight", "TestWhichEndpointsANodeMayReport"},
		{"S11", "the public zone tells nothing of what is in the tailnet", "TestPublicNeverTellsWhatIsInTheTailnet TestPublicRefusesTransfersUpdatesAndNotifies TestPublicTellsNothingOfItself TestAVisitorReachesANode"},
		{"S12", "no node gets a name that programs look for by themselves", "TestWhoCannotJoin TestWhatAGatewayMayNotSay TestNamesAreTheirOwners TestWhatIsShownToTheWorld TestWhatPolicyLetsNodesShow TestWhoMayTakeServiceNames TestAServiceNameBringsNoRights TestAPolicyEndsWhatItForbids"},
		{"S13", "a visitor gets what is shown to the world under that name, and nothing else; another host is nobody's", "TestTheWorldNeverReachesTheTailnet TestAnotherHostIsMisdirected TestAConnectionForOneNameHasNoOther TestSessionsResumeForTheSameNameAlone TestAVisitorReachesWhatANodeShows TestANodeReachesWhatAnotherServes"},
		{"S14", "only gateways bring visitors, and none that come from inside", "TestOnlyAGatewaysHeaderMakesAVisit TestAHeaderIsTakenOnce TestNoVisitorComesFromInside TestNodesAreNoVisitorsOfEachOther"},
		{"S15", "a domain is shown while it leads to that very node; a name is one node's, unless the policy lists more", "TestADomainCountsWhileItLeadsToTheNode TestTwoNodesShareANameThatPolicyLists TestWhatIsShownToTheWorld"},
		{"S17", "who may come in is decided before anything is served; logins are for one browser, name and provider; links are taken once, by a person", "TestALoginIsForOneBrowserOneNameAndOneProvider TestAttacksOnTheWayBack TestALoginOfSomebodyElseIsNotTakenOver TestIDTokensThatAreNotBelieved TestALoginNeverLeadsAway TestDexHoldsWhatWeAskItFor TestALinkIsSpentByPostAlone TestACookieCountsWhereItWasMadeForAlone TestTriesAreLimitedBeforeHashesAreComputed TestFourHashesAtOnce TestOtherSitesMayNotChangeThings TestChromiumIsNotUsedByOtherSites TestNothingThatSaysWhoCameGetsThrough"},
		{"S18", "values for CAs and credentials count at a node's own names, from its own address; CAA names accounts of configured CAs", "TestWhatIsNotPublished TestValuesAreBounded TestAccountsThatAreRefused TestSecretsOfCredentials TestUpdatesThatAreRefused TestUpdatesAreNotReplayed TestFacesAreReachedThroughTheTunnel TestWhoMayIssue"},
		{"S19", "the tailnet's own CA can certify names of its zone and nothing else, and certifies a node's own", "TestAStolenIntermediateCertifiesNothingOutside TestCheckRootRefusesWhatCouldCertifyMore TestARootThatCouldCertifyMoreIsNotTaken TestWhatALocalCARefusesToIssue TestTheTailnetsCACertifiesANodesOwnNames"},
		{"S20", "other users of a machine read state and change nothing; commands are root's", "TestStrangersMayCallWhatChangesNothing TestStrangersMayReadAndNotChange TestStrangersAreNotToldWhatTheCacheHolds TestCommandsComeFromFilesThatNobodyElseWrites TestCommandsOfRootRunAsNobody TestTargetsAreOpenedAsWhoMadeThem TestFilesAreServedByTrustedConfigurationsAlone TestStrangersLearnNamesOfWhatIsServedAlone TestWhatIsKeptForACallerRunsNothing TestWhoMayWriteTXTRecords"},
		{"S21", "secrets are never logged", "TestNoSecretIsLogged TestWhatOpensDoorsIsNotWrittenDown TestCodesAreNotLogged TestSecretsDoNotPrintThemselves TestKeysAreMadeOnce TestAnOwnersKeyIsKept TestSecretsAreNotPrinted TestAProvidersSettingsAreReadFromAFile"},
		{"", "a node that floods, lies or sends what is no call harms itself alone", "TestAMaliciousNodeHarmsItselfAlone TestANodeTakesNobodysName TestASlowBodyIsLetGo TestAHugeBodyIsCutOff TestAFloodLeavesRoomForOthers TestAFloodOfCallsHoldsNobodyUp FuzzANodesCalls"},
	}
}

// defencesTable is the table as the README has it.
func defencesTable() string {
	var b strings.Builder
	b.WriteString("| rule | what is defended | tests that try the attack |\n|---|---|---|\n")
	for _, d := range defences() {
		fmt.Fprintf(&b, "| %s | %s | `%s` |\n", d.rule, d.what, strings.ReplaceAll(d.tests, " ", "` `"))
	}
	return b.String()
}

// The tests that the table names exist, and the README has the table.
func TestWhatIsDefendedIsTried(t *testing.T) {
	t.Log(defencesTable())
	known := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range function.FindAllSubmatch(text, -1) {
			known[string(found[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range defences() {
		for name := range strings.FieldsSeq(d.tests) {
			if !known[name] {
				t.Errorf("%s %s: there is no test %s", d.rule, d.what, name)
			}
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "\n"+defencesTable()) {
		t.Error("README.md does not have the table that was just printed")
	}
}
