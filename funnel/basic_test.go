package funnel

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const (
	// cheapHash is "secret", as cheap as is taken.
	cheapHash = "$argon2id$v=19$m=7168,t=1,p=1$AAECAwQFBgcICQoLDA0ODw$O5yr18lkQMBFjy9ZcvTBaJoWzEkkGBZ2yoJ9xbJRhk8"
	bcrypted  = "$2b$10$abcdefghijklmnopqrstuuqflPDzB6gcMhKa1rZqKiun2YGL5sa2u" // "secret", by libxcrypt

	referenceHash = "$argon2id$v=19$m=8192,t=2,p=2$c29tZXNhbHQxMjM0$2/tU1W1oTP9oYaQHPdx4GrOPEVUn8888z4ZtYb62dRc" // by argon2(1)
	htpasswdHash  = "$2y$10$6l3fSwp2BFmDyxhzMIetNO1bxp4Y9e/JqZ2XMi7AtGfKRsVCpBc6."                               // by htpasswd -B -C 10
	bcryptOf72    = "$2b$10$abcdefghijklmnopqrstuuhBb/0dYbuuS1CS8hp30IXhlFBW2VAWG"                               // of 72 times x, by libxcrypt
)

func basicOf(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

func withUsers(users map[string]string) Access { return Access{Basic: &Basic{Users: users}} }

func TestPasswordsOpen(t *testing.T) {
	hashed, err := HashPassword("pässword with spaces")
	if err != nil {
		t.Fatal(err)
	}
	users := map[string]string{"ann": cheapHash, "bob": bcrypted, "cleo": hashed, "dan": referenceHash, "eve": htpasswdHash}
	for name, test := range map[string]struct {
		authorization string
		want          int
	}{
		"argon2id":             {basicOf("ann", "secret"), 200},
		"bcrypt":               {basicOf("bob", "secret"), 200},
		"our own hash":         {basicOf("cleo", "pässword with spaces"), 200},
		"the argon2 program's": {basicOf("dan", "secret"), 200},
		"htpasswd's":           {basicOf("eve", "secret"), 200},
		"small letters":        {strings.Replace(basicOf("ann", "secret"), "Basic", "basic", 1), 200},
		"a wrong password":     {basicOf("ann", "Secret"), 401},
		"a longer one":         {basicOf("ann", "secret1"), 401},
		"none":                 {basicOf("ann", ""), 401},
		"another one's":        {basicOf("cleo", "secret"), 401},
		"nobody's":             {basicOf("zoe", "secret"), 401},
		"a name in capitals":   {basicOf("ANN", "secret"), 401},
		"with a NUL":           {basicOf("ann", "secret\x00"), 401},
		"bcrypt with a NUL":    {basicOf("bob", "secret\x00x"), 401},
		"much beyond bcrypt":   {basicOf("bob", strings.Repeat("x", 100)), 401},
		"the hash itself":      {basicOf("ann", cheapHash), 401},
		"a huge password":      {basicOf("ann", strings.Repeat("x", 100000)), 401},
		"a huge name":          {basicOf(strings.Repeat("x", 100000), "secret"), 401},
		"no header":            {"", 401},
		"another scheme":       {"Bearer secret", 401},
		"no base64":            {"Basic !!!", 401},
		"no colon":             {"Basic " + base64.StdEncoding.EncodeToString([]byte("ann")), 401},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, withUsers(users), nil)
			w := g.ask("GET", "/", "Authorization", test.authorization)
			g.wantStatus(w, test.want)
			if challenge := w.Header().Get("WWW-Authenticate"); test.want == 401 && challenge != `Basic realm="nas.example.org", charset="UTF-8"` {
				t.Errorf("challenge %q", challenge)
			}
			if g.got != nil && g.got.Header.Get("Authorization") != "" {
				t.Error("the service got the password")
			}
		})
	}
}

func TestWhatBcryptDoesNotReadIsWrong(t *testing.T) {
	long := strings.Repeat("x", bcryptLength)
	h := passwordHash{bcrypt: []byte(bcryptOf72)}
	if !h.matches(long) {
		t.Error("72 bytes: the right password is wrong")
	}
	if h.matches(long + "y") {
		t.Error("73 bytes, of which bcrypt reads 72: a wrong password is right")
	}
}

func TestHashesHaveBounds(t *testing.T) {
	for _, hash := range []string{
		"", "secret", "$1$abc$def", "$apr1$abc$def", "{SHA}abc", "$argon2i$v=19$m=7168,t=1,p=1$AAECAwQFBgcICQoLDA0ODw$AAECAwQFBgcICQoLDA0ODw",
		strings.Replace(cheapHash, "v=19", "v=16", 1),
		strings.Replace(cheapHash, "m=7168", "m=7167", 1),
		strings.Replace(cheapHash, "m=7168", "m=131073", 1),
		strings.Replace(cheapHash, "m=7168", "m=4294967295", 1),
		strings.Replace(cheapHash, "t=1", "t=0", 1),
		strings.Replace(cheapHash, "t=1", "t=11", 1),
		strings.Replace(cheapHash, "p=1", "p=0", 1),
		strings.Replace(cheapHash, "p=1", "p=256", 1),
		strings.Replace(cheapHash, "t=1", "t=1,t=2", 1),
		strings.Replace(cheapHash, "t=1,", "", 1),
		strings.Replace(cheapHash, "t=1", "t=-1", 1),
		cheapHash + "$x", cheapHash + "=", cheapHash[:60], cheapHash[:len(cheapHash)-43],
		strings.Replace(bcrypted, "$10$", "$09$", 1),
		strings.Replace(bcrypted, "$10$", "$31$", 1),
		strings.Replace(bcrypted, "$2b$", "$2x$", 1),
		bcrypted[:59], bcrypted + "x", strings.Repeat("$", 600),
	} {
		if _, err := parseHash(hash); err == nil {
			t.Errorf("%q was taken", hash)
		}
		if err := withUsers(map[string]string{"ann": hash}).Check(); err == nil || !strings.Contains(err.Error(), `basic.users: "ann"`) {
			t.Errorf("Check of %q: %v", hash, err)
		}
	}
}

func TestTriesAreLimitedBeforeHashesAreComputed(t *testing.T) {
	g := newGuarded(t, withUsers(map[string]string{"ann": cheapHash}), nil)
	// With all places taken no hash can be computed: who is over the limit does not even wait for one.
	for range maxHashing {
		done, err := g.cfg.Shared.startHash(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer done()
	}
	for range 10 {
		if _, ok := g.cfg.Shared.takeTry(g.from.Addr.Addr()); !ok {
			t.Fatal("ten tries are too many already")
		}
	}
	start := time.Now()
	w := g.ask("GET", "/", "Authorization", basicOf("ann", "secret"))
	g.wantStatus(w, http.StatusTooManyRequests)
	if w.Header().Get("Retry-After") == "" || time.Since(start) >= hashWait {
		t.Errorf("answered after %s, Retry-After %q", time.Since(start), w.Header().Get("Retry-After"))
	}
}

func TestWhoIsKnownIsNotCountedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t, withUsers(map[string]string{"ann": cheapHash}), nil)
		for range 100 {
			g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "secret")), http.StatusOK)
		}
		// Somebody behind the same address tries until it is enough; who is in stays in.
		for range 9 {
			g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "wrong")), http.StatusUnauthorized)
		}
		g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "wrong")), http.StatusTooManyRequests)
		g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "secret")), http.StatusOK)
		time.Sleep(knownTime)
		if g.cfg.Shared.isKnown(g.cfg.Shared.knownKey("ann", "secret", g.passwords.users["ann"])) {
			t.Error("a password is known for ever")
		}
		g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "secret")), http.StatusOK)
		// A changed password counts at once.
		g = newGuarded(t, withUsers(map[string]string{"ann": bcrypted[:len(bcrypted)-1] + "a"}), g.cfg.Shared)
		g.wantStatus(g.ask("GET", "/", "Authorization", basicOf("ann", "secret")), http.StatusUnauthorized)
	})
}

func TestFourHashesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := &guards{}
		var running, most, refused atomic.Int64
		var all sync.WaitGroup
		const visitors = maxHashing + maxHashQueue + 20
		for range visitors {
			all.Go(func() {
				done, err := shared.startHash(t.Context())
				if errors.Is(err, errHashesBusy) {
					refused.Add(1)
					return
				}
				if n := running.Add(1); n > most.Load() {
					most.Store(n)
				}
				time.Sleep(10 * time.Millisecond)
				running.Add(-1)
				done()
			})
			synctest.Wait() // so that they come one after the other
		}
		all.Wait()
		if most.Load() != maxHashing || refused.Load() != 20 {
			t.Errorf("%d at once and %d of %d refused, want %d and 20", most.Load(), refused.Load(), visitors, maxHashing)
		}
		// Nobody waits for ever.
		for range maxHashing {
			if _, err := shared.startHash(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if _, err := shared.startHash(t.Context()); !errors.Is(err, errHashesBusy) || time.Since(start) != hashWait {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

func TestKnownPasswordsAreBounded(t *testing.T) {
	shared := &guards{}
	for i := range maxKnown + 10 {
		shared.know(shared.knownKey("ann", fmt.Sprint(i), passwordHash{}))
	}
	if len(shared.known) > maxKnown {
		t.Errorf("%d are known", len(shared.known))
	}
}

func TestPasswordsHaveALength(t *testing.T) {
	for _, password := range []string{"", strings.Repeat("x", maxPassword+1)} {
		if _, err := HashPassword(password); err == nil {
			t.Errorf("%d bytes were taken", len(password))
		}
	}
	a, _ := HashPassword("secret")
	b, _ := HashPassword("secret")
	if a == b {
		t.Error("the same salt twice")
	}
}

// FuzzPasswordHash checks that a hash that is taken is within the bounds, and that a basic header never does harm.
func FuzzPasswordHash(f *testing.F) {
	f.Add(cheapHash, "Basic YTpi")
	f.Add(bcrypted, "Basic")
	f.Fuzz(func(t *testing.T, text, authorization string) {
		h, err := parseHash(text)
		if err == nil && h.bcrypt == nil && (h.memory < minMemory || h.memory > maxMemory || h.passes < 1 || h.passes > maxPasses || h.threads < 1 || len(h.salt) < 8 || len(h.argon2sum) < 16) {
			t.Errorf("%q was taken as %+v", text, h)
		}
		if name, _, ok := basicAuth(authorization); ok && strings.Contains(name, ":") {
			t.Errorf("the name %q has a colon", name)
		}
	})
}
