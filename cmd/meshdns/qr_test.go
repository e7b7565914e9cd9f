package main

import (
	"bytes"
	"strings"
	"testing"

	"rsc.io/qr"
)

func TestQRCodeOnATerminalIsTheWholeCode(t *testing.T) {
	text := "MESHDNS" + strings.Repeat("ABCDEFGH234567", 18)
	var drawn bytes.Buffer
	writeQR(&drawn, text)
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]rune
	for line := range strings.Lines(drawn.String()) {
		line = strings.TrimSuffix(strings.TrimPrefix(line, "\x1b[30;107m"), "\x1b[0m\n")
		rows = append(rows, []rune(line))
	}
	side := code.Size + 2*quietZone
	if len(rows) != (side+1)/2 {
		t.Fatalf("%d lines for %d modules", len(rows), side)
	}
	for y := range side {
		if len(rows[y/2]) != side {
			t.Fatalf("line %d has %d characters, want %d", y/2, len(rows[y/2]), side)
		}
		for x := range side {
			half := "█▀"
			if y%2 == 1 {
				half = "█▄"
			}
			if got, want := strings.ContainsRune(half, rows[y/2][x]), code.Black(x-quietZone, y-quietZone); got != want {
				t.Fatalf("module %d,%d: black is %t, want %t", x, y, got, want)
			}
		}
	}
}
