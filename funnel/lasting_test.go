package funnel

import (
	"encoding/json"
	"testing"
	"time"
)

func TestLifetimesAreReadAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`{"login": {"issuer": "https://id.example", "clientID": "nas", "lifetime": "12h30m"}}`:      12*time.Hour + 30*time.Minute,
		`{"login": {"issuer": "https://id.example", "clientID": "nas", "lifetime": 3600000000000}}`: time.Hour,
		`{"login": {"issuer": "https://id.example", "clientID": "nas"}}`:                            0,
	} {
		var a Access
		if err := json.Unmarshal([]byte(text), &a); err != nil || a.Login.Lifetime != want || a.Login.Issuer != "https://id.example" || a.Login.ClientID != "nas" {
			t.Errorf("%s: %+v, %v", text, a.Login, err)
		}
	}
	var s Share
	if err := json.Unmarshal([]byte(`{"id": "a", "until": "2030-01-01T00:00:00Z", "lifetime": "1m"}`), &s); err != nil || s.Lifetime != time.Minute || s.ID != "a" || s.Until.Year() != 2030 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, text := range []string{
		`{"login": {"lifetime": "long"}}`, `{"login": {"lifetime": true}}`, `{"login": {"mail": ["ann@example.com"]}}`, `{"shares": [{"used": true}]}`, `{"login": 1}`,
	} {
		var a Access
		if err := json.Unmarshal([]byte(text), &a); err == nil {
			t.Errorf("%s was taken as %+v", text, a)
		}
	}
}
