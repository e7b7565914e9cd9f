package funnel

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// lasting is a duration that people may write as they say it, "12h", and programs in nanoseconds.
type lasting time.Duration

// UnmarshalJSON reads one.
func (l *lasting) UnmarshalJSON(text []byte) error {
	var words string
	if json.Unmarshal(text, &words) != nil {
		return json.Unmarshal(text, (*time.Duration)(l))
	}
	d, err := time.ParseDuration(words)
	if err != nil {
		return fmt.Errorf("%.40q is no duration such as 12h or 30m", words)
	}
	*l = lasting(d)
	return nil
}

// strictly reads JSON and refuses keys that there are not: whoever misspells a rule must not go without it.
func strictly(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// UnmarshalJSON reads a login's rules.
func (o *OIDC) UnmarshalJSON(text []byte) error {
	type fields OIDC // without this method
	v := struct {
		*fields

		Lifetime lasting `json:"lifetime"`
	}{(*fields)(o), lasting(o.Lifetime)}
	err := strictly(text, &v)
	o.Lifetime = time.Duration(v.Lifetime)
	return err
}

// UnmarshalJSON reads a share.
func (s *Share) UnmarshalJSON(text []byte) error {
	type fields Share // without this method
	v := struct {
		*fields

		Lifetime lasting `json:"lifetime"`
	}{(*fields)(s), lasting(s.Lifetime)}
	err := strictly(text, &v)
	s.Lifetime = time.Duration(v.Lifetime)
	return err
}
