package main

import (
	"fmt"
	"io"
	"strings"

	"rsc.io/qr"
)

// quietZone is the white margin that a reader needs (ISO/IEC 18004, section 9.1), in modules.
const quietZone = 4

// writeQR draws a text as a QR code: each character is two modules, one above the other. The colours are given, since a
// terminal's own may be light on dark, which some readers refuse. What is too long for a code is left out.
func writeQR(w io.Writer, text string) {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return
	}
	for y := -quietZone; y < code.Size+quietZone; y += 2 {
		var line strings.Builder
		for x := -quietZone; x < code.Size+quietZone; x++ {
			switch upper, lower := code.Black(x, y), code.Black(x, y+1); { // outside the code nothing is black
			case upper && lower:
				line.WriteRune('█')
			case upper:
				line.WriteRune('▀')
			case lower:
				line.WriteRune('▄')
			default:
				line.WriteRune(' ')
			}
		}
		fmt.Fprintf(w, "\x1b[30;107m%s\x1b[0m\n", line.String())
	}
}
