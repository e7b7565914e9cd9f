package osconfig

import "time"

// Bounds of a war with another program that writes the file too.
const (
	freeRewrites = 5                // in a row, without any pause
	firstPause   = 2 * time.Second  // doubles with each one more
	longestPause = 5 * time.Minute  // from then on it is the other program's file, with a try now and then
	peaceTime    = 10 * time.Minute // without a rewrite: all is forgotten
	pacedTries   = 4                // after the free ones, with pauses: half a minute in all, and then the file is left to the other
	calmTime     = 2 * time.Minute  // that nobody has written for, before it is tried again
)

// budget bounds how often a file is written again that another program overwrites.
type budget struct {
	spent int       // rewrites since the last peace
	last  time.Time // the last one
}

// pause is how long the next rewrite has to wait; 0: it may be done.
func (b *budget) pause(now time.Time) time.Duration {
	if now.Sub(b.last) >= peaceTime {
		b.spent = 0
	}
	over := b.spent - freeRewrites
	if over < 0 {
		return 0
	}
	wait := longestPause
	if over < 16 {
		wait = min(firstPause<<over, longestPause)
	}
	return max(0, wait-now.Sub(b.last))
}

// spend notes a rewrite.
func (b *budget) spend(now time.Time) { b.spent, b.last = b.spent+1, now }

// lost reports whether the other program is to have the file.
func (b *budget) lost() bool { return b.spent >= freeRewrites+pacedTries }

// tight reports whether the free ones are gone.
func (b *budget) tight() bool { return b.spent >= freeRewrites }
