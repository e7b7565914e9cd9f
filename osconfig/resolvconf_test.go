package osconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseResolvConf(t *testing.T) {
	tests := map[string]struct {
		text                               string
		servers, search, options, sortlist []string
		problems                           int
	}{
		"ordinary":                      {text: upstreamConf, servers: []string{"192.0.2.53"}, search: []string{"corp.example"}, options: []string{"timeout:1"}},
		"nothing":                       {},
		"CRLF":                          {text: "nameserver 192.0.2.53\r\nsearch a.example\r\n", servers: []string{"192.0.2.53"}, search: []string{"a.example"}},
		"no newline at the end":         {text: "nameserver 192.0.2.53", servers: []string{"192.0.2.53"}},
		"tabs and spaces":               {text: "\t nameserver\t192.0.2.53 \t\n", servers: []string{"192.0.2.53"}},
		"comments behind":               {text: "nameserver 192.0.2.53  # eth0:v4\nnameserver 192.0.2.54;x\nsearch a b # c\n", servers: []string{"192.0.2.53", "192.0.2.54"}, search: []string{"a", "b"}},
		"both kinds of comments":        {text: "# nameserver 1.1.1.1\n; nameserver 1.1.1.1\n"},
		"IPv6 with a zone":              {text: "nameserver fe80::1%eth0\nnameserver 2001:db8::1\n", servers: []string{"fe80::1%eth0", "2001:db8::1"}},
		"an IPv4-mapped address":        {text: "nameserver ::ffff:192.0.2.53\n", servers: []string{"192.0.2.53"}},
		"the same server twice":         {text: "nameserver 192.0.2.53\nnameserver 192.0.2.53\n", servers: []string{"192.0.2.53"}},
		"one bad line costs no other":   {text: "nameserver router\nnameserver 192.0.2.53\nnonsense\n", servers: []string{"192.0.2.53"}, problems: 2},
		"the last search list counts":   {text: "search a\ndomain b\nsearch c d\n", search: []string{"c", "d"}},
		"a bad list replaces none":      {text: "search a\nsearch $\n", search: []string{"a"}, problems: 1},
		"the root alone":                {text: "search .\n", search: []string{"."}},
		"dots at the end":               {text: "search a.example.\n", search: []string{"a.example"}},
		"duplicates in any case":        {text: "search a.example A.Example\n", search: []string{"a.example"}},
		"options add up":                {text: "options ndots:2 edns0\noptions rotate ndots:2\n", options: []string{"ndots:2", "edns0", "rotate"}},
		"a sortlist":                    {text: "sortlist 130.155.160.0/255.255.240.0 130.155.0.0\n", sortlist: []string{"130.155.160.0/255.255.240.0", "130.155.0.0"}},
		"a keyword alone":               {text: "nameserver\nsearch\n", problems: 2},
		"keywords are in lower case":    {text: "NAMESERVER 192.0.2.53\n", problems: 1},
		"a control character in a name": {text: "search a\x1bb\n", problems: 1},
		"a line that is too long":       {text: "search " + strings.Repeat("a ", maxLineBytes) + "\nnameserver 192.0.2.53\n", servers: []string{"192.0.2.53"}, problems: 1},
		"too many servers":              {text: manyServers(20), servers: strings.Fields(strings.ReplaceAll(manyServers(16), "nameserver ", "")), problems: 4},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := parseResolvConf([]byte(tt.text))
			for what, pair := range map[string][2][]string{
				"nameservers": {addrWords(c.nameservers), tt.servers},
				"search":      {c.search, tt.search},
				"options":     {c.options, tt.options},
				"sortlist":    {c.sortlist, tt.sortlist},
			} {
				if !slices.Equal(pair[0], pair[1]) {
					t.Errorf("%s: got %q, want %q", what, pair[0], pair[1])
				}
			}
			if len(c.problems) != tt.problems {
				t.Errorf("problems: got %v, want %d", c.problems, tt.problems)
			}
		})
	}
}

func manyServers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "nameserver 192.0.2.%d\n", i+1)
	}
	return b.String()
}

func TestProblemsNameLineAndValue(t *testing.T) {
	c := parseResolvConf([]byte("search a\nnameserver router\n"))
	if len(c.problems) != 1 || c.problems[0].String() != `line 2: "router" is no address` {
		t.Errorf("got %v", c.problems)
	}
}

func TestAHugeFileIsReadInPart(t *testing.T) {
	text := "nameserver 192.0.2.53\n" + strings.Repeat("# filling\n", maxConfBytes/10) + "nameserver 192.0.2.54\n"
	c := parseResolvConf([]byte(text))
	if !slices.Equal(addrWords(c.nameservers), []string{"192.0.2.53"}) || len(c.problems) != 1 {
		t.Errorf("got %v, %v", c.nameservers, c.problems)
	}
}

func TestOurFileCarriesOver(t *testing.T) {
	tests := map[string]struct {
		before, host string
		search       []string
		want         string // below the comments
	}{
		"options, sortlist and search, ours first": {
			before: "search corp.example lan\nnameserver 192.0.2.53\noptions ndots:2 edns0\nsortlist 192.0.2.0\n",
			search: []string{"foo-bar.ts.net"},
			want:   "nameserver 127.0.0.77\nsearch foo-bar.ts.net corp.example lan\noptions ndots:2 edns0\nsortlist 192.0.2.0\n",
		},
		"no search wished": {
			before: "search corp.example\nnameserver 192.0.2.53\n",
			want:   "nameserver 127.0.0.77\nsearch corp.example\n",
		},
		"the host's own domain goes on to be searched": {
			before: "nameserver 192.0.2.53\n", host: "laptop.corp.example", search: []string{"foo-bar.ts.net"},
			want: "nameserver 127.0.0.77\nsearch foo-bar.ts.net corp.example\n",
		},
		"nothing before": {
			search: []string{"foo-bar.ts.net"},
			want:   "nameserver 127.0.0.77\nsearch foo-bar.ts.net\n",
		},
		"a domain that is ours already": {
			before: "search Foo-Bar.ts.net corp.example\n", search: []string{"foo-bar.ts.net"},
			want: "nameserver 127.0.0.77\nsearch foo-bar.ts.net corp.example\n",
		},
		"the root in the list makes room": {
			before: "search .\n", search: []string{"foo-bar.ts.net"},
			want: "nameserver 127.0.0.77\nsearch foo-bar.ts.net\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := stubConfig()
			c.Search = tt.search
			host := machine{host: func() string { return tt.host }}.hostDomain()
			text := string(ourConf(c, parseResolvConf([]byte(tt.before)), host))
			var got strings.Builder
			for line := range strings.Lines(text) {
				if !strings.HasPrefix(line, "#") {
					got.WriteString(line)
				}
			}
			if got.String() != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got.String(), tt.want)
			}
			if !strings.Contains(text, "meshdns dns restore") {
				t.Error("it does not say how to undo it")
			}
		})
	}
}

func TestASearchListStaysShortEnoughForMusl(t *testing.T) {
	var before []string
	for i := range 30 {
		before = append(before, fmt.Sprintf("domain%d.example.org", i))
	}
	list := joinSearch([]string{"foo-bar.ts.net"}, before[:10], "")
	if n := len(strings.Join(list, " ")); n > maxSearchBytes || len(list) < 5 {
		t.Errorf("%d bytes in %d domains", n, len(list))
	}
	// One that was too long before is no worse for ours.
	if list := joinSearch([]string{"foo-bar.ts.net"}, before, ""); list[0] != "foo-bar.ts.net" || len(list) < 30 {
		t.Errorf("%d domains left of 31", len(list))
	}
}

func TestAFileOfOursWhoseJournalIsLostIsNoLoop(t *testing.T) {
	ours := ourConf(stubConfig(), parseResolvConf([]byte("nameserver 192.0.2.53\nnameserver fe80::1%eth0\n")), "")
	got := parseResolvConf(withoutUs(ours, stubConfig().addrs()))
	if want := []string{"192.0.2.53", "fe80::1%eth0"}; !slices.Equal(addrWords(got.nameservers), want) {
		t.Errorf("got %v, want %v", got.nameservers, want)
	}
	other := []byte("nameserver 192.0.2.53\n")
	if string(withoutUs(other, stubConfig().addrs())) != string(other) {
		t.Error("a file without us was changed")
	}
}

func FuzzResolvConf(f *testing.F) {
	for _, text := range []string{upstreamConf, "nameserver fe80::1%eth0 # x\nsearch a. b\noptions ndots:1\nsortlist 1.2.3.0/24\n", manyServers(20), "search .\r\n"} {
		f.Add([]byte(text), "corp.example")
	}
	f.Fuzz(func(t *testing.T, data []byte, domain string) {
		c := parseResolvConf(data)
		// What we write of it reads back as the same, so that nothing in it can become a line of its own.
		again := parseResolvConf(c.append(nil))
		if !slices.Equal(again.nameservers, c.nameservers) || !slices.Equal(again.search, c.search) ||
			!slices.Equal(again.options, c.options) || !slices.Equal(again.sortlist, c.sortlist) || len(again.problems) > 0 {
			t.Errorf("%+v\nreads back as\n%+v", c, again)
		}
		host := machine{host: func() string { return "host." + domain }}.hostDomain()
		ours := parseResolvConf(ourConf(stubConfig(), c, host))
		if len(ours.nameservers) != 1 || ours.nameservers[0] != netip.MustParseAddr("127.0.0.77") || len(ours.problems) > 0 {
			t.Errorf("ours of %q: %+v", data, ours)
		}
		rest := parseResolvConf(withoutServers(data, c.nameservers))
		if len(data) <= maxConfBytes && len(c.nameservers) < maxServersRead && len(rest.nameservers) > 0 {
			t.Errorf("%q without its servers names %v", data, rest.nameservers)
		}
	})
}
