package node

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/meshdns/meshdns/funnel"
)

// accessLogConfig says where visits are written down.
type accessLogConfig struct {
	File      string `yaml:"file" doc:"file for a line a visit, which is opened anew when it has been moved away; empty: none"`
	Format    string `yaml:"format" doc:"json, or combined as web servers write it"`
	Addresses bool   `yaml:"addresses" doc:"whether visitors' addresses are written down"`
}

// accessLog has visits written down, and told to the commands that wait for them.
func (n *Node) accessLog() funnel.AccessLogConfig {
	c := n.cfg.AccessLog
	l := funnel.AccessLogConfig{Format: c.Format, Addresses: c.Addresses, Visited: n.visited}
	if c.File != "" {
		n.serving.log = &logFile{path: c.File}
		l.Writer = n.serving.log
	}
	return l
}

// visited tells commands in the foreground of a visit of what they serve. What they do not take in time is left out.
func (n *Node) visited(line funnel.AccessLine) {
	s := &n.serving
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.sessions {
		if w.visits == nil || w.served[0].Public != line.Public || w.served[0].label() != line.Entry {
			continue
		}
		select {
		case w.visits <- line:
		default:
		}
	}
}

// label is what lines of visits call it.
func (s served) label() string {
	host := s.Name
	if host == "" {
		host = s.Kind
	}
	return net.JoinHostPort(host, strconv.Itoa(int(s.Port)))
}

// logFile is a file that lines are added to. Whoever moves it away, as logrotate does, gets a new one in its place.
type logFile struct {
	path string

	mu   sync.Mutex
	file *os.File
}

// Write adds one line.
func (l *logFile) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		ours, err := l.file.Stat()
		if there, terr := os.Stat(l.path); err != nil || terr != nil || !os.SameFile(ours, there) {
			l.file.Close()
			l.file = nil
		}
	}
	if l.file == nil {
		f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return 0, fmt.Errorf("opening the access log: %w", err)
		}
		l.file = f
	}
	return l.file.Write(line)
}

// close ends it.
func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
