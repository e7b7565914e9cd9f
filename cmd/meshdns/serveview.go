package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// serveView shows how it goes with what a command serves.
type serveView struct {
	app   *app
	flags serveFlags
	up    bool
}

// servedUp is what is served now, as far as people are shown it.
type servedUp struct {
	Entries []struct {
		URL    string    `json:"url"`
		Path   string    `json:"path"`
		Target string    `json:"target"`
		Until  time.Time `json:"until"`
	} `json:"entries"`
}

// visitLine is one visit, as far as people are shown it.
type visitLine struct {
	Time    time.Time `json:"time"`
	Addr    string    `json:"addr"`
	Node    string    `json:"node"`
	User    string    `json:"user"`
	Method  string    `json:"method"`
	Path    string    `json:"path"`
	Status  int       `json:"status"`
	Bytes   int64     `json:"bytes"`
	Seconds float64   `json:"seconds"`
}

// told shows one thing that the daemon has told.
func (v *serveView) told(kind, text string, data json.RawMessage) {
	a := v.app
	v.up = v.up || kind == "up"
	if a.json && (kind == "up" || kind == "visit") {
		fmt.Fprintf(a.stdout, "%s\n", data)
		return
	}
	switch kind {
	case "step":
		if isTerminal(a.stderr) {
			a.say("%s", text)
		}
	case "warning":
		a.say("%s %s", a.paint(a.stderr, yellow, "warning:"), text)
	case "up":
		v.showUp(data)
	case "visit":
		v.showVisit(data)
	case "end":
		a.say("ended: %s", text)
	}
}

// showUp prints the addresses: the result.
func (v *serveView) showUp(data json.RawMessage) {
	a := v.app
	var up servedUp
	if err := json.Unmarshal(data, &up); err != nil || len(up.Entries) == 0 {
		a.say("the daemon's answer is not understood: %v", err)
		return
	}
	for _, e := range up.Entries {
		fmt.Fprintf(a.stdout, "%s\n", e.URL)
		line := "leads to " + e.Target
		if !e.Until.IsZero() {
			line += ", until " + minute(e.Until)
		}
		a.say("%s", line)
	}
	if v.flags.background {
		a.say("it goes on in the background; end it with the same flags and `%s off`", v.flags.command)
		return
	}
	if isTerminal(a.stdout) && strings.Contains(up.Entries[0].URL, "://") {
		writeQR(a.stdout, up.Entries[0].URL)
	}
	a.say("Ctrl-C ends it")
}

// showVisit prints a line for a visit.
func (v *serveView) showVisit(data json.RawMessage) {
	var l visitLine
	if err := json.Unmarshal(data, &l); err != nil {
		return // of a newer daemon
	}
	who := l.Addr
	if l.Node != "" {
		who = l.Node
	}
	if l.User != "" {
		who += " (" + l.User + ")"
	}
	what := "connection"
	if l.Method != "" {
		what = fmt.Sprintf("%s %s %d", l.Method, l.Path, l.Status)
	}
	fmt.Fprintf(v.app.stdout, "%s  %s  %s  %d bytes, %.3f s\n", l.Time.Local().Format("15:04:05"), who, what, l.Bytes, l.Seconds)
}
