package osconfig

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// plan says what apply would do.
func (x direct) plan(ctx context.Context, c Config, wish string, j *journal) (Plan, error) {
	ch, err := x.change(ctx, c, wish, j)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Mode: ch.mode, Possible: ch.refused == nil, Trace: ch.trace}
	if ch.refused != nil {
		p.Reason, p.Hint = ch.refused.Error(), ch.refused.Hint()
		return p, nil
	}
	p.Diff = diffStates(ch.before, ch.after)
	if ch.mode != modeDirect {
		p.Diff = planManaged(ch.mode, c)
	}
	return p, nil
}

// diffStates shows what becomes of the file, in the unified form of diff(1).
func diffStates(before, after fileState) string {
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s (%s)\n+++ %s (%s)\n", confPath, before.describe(), confPath, after.describe())
	old, now := textLines(before.Data), textLines(after.Data)
	fmt.Fprintf(&b, "@@ -%s +%s @@\n", hunkRange(len(old)), hunkRange(len(now)))
	for _, line := range diffLines(old, now) {
		b.WriteString(line + "\n")
	}
	return b.String()
}

func hunkRange(n int) string { return fmt.Sprintf("%d,%d", min(n, 1), n) }

// textLines splits a text. A last line without an end shows as one of diff(1) does.
func textLines(data []byte) []string {
	var lines []string
	for line := range strings.Lines(string(data)) {
		whole := strings.TrimSuffix(line, "\n")
		if whole == line {
			whole += " (no newline at the end)"
		}
		lines = append(lines, printable(whole))
	}
	return lines
}

// printable shows control characters, so that a file cannot write to the terminal of whoever reads the plan.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0 || r == '\ufffd') {
			return '\u00b7'
		}
		return r
	}, line)
}

// maxDiffLines bounds what is compared line by line: the table has as many cells as the product of both.
const maxDiffLines = 500

// diffLines marks each line as kept, removed or added, with as many kept as there can be.
func diffLines(old, now []string) []string {
	if len(old) > maxDiffLines || len(now) > maxDiffLines {
		return slices.Concat(marked("-", old), marked("+", now))
	}
	// common[i][j] is how many lines old[i:] and now[j:] have in common, in order.
	common := make([][]int, len(old)+1)
	common[len(old)] = make([]int, len(now)+1)
	for i := len(old) - 1; i >= 0; i-- {
		common[i] = make([]int, len(now)+1)
		for j := len(now) - 1; j >= 0; j-- {
			if old[i] == now[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []string
	i, j := 0, 0
	for i < len(old) && j < len(now) {
		switch {
		case old[i] == now[j]:
			out = append(out, " "+old[i])
			i, j = i+1, j+1
		case common[i+1][j] >= common[i][j+1]:
			out = append(out, "-"+old[i])
			i++
		default:
			out = append(out, "+"+now[j])
			j++
		}
	}
	return slices.Concat(out, marked("-", old[i:]), marked("+", now[j:]))
}

func marked(mark string, lines []string) []string {
	var out []string
	for _, line := range lines {
		out = append(out, mark+line)
	}
	return out
}
