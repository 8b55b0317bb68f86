package main_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/client"
)

// What the agent is held to.
const (
	idleLimit = 12 << 10 // KiB resident
	// growth that is none: of buffers, and of what the collector leaves.
	growthLimit = 24 << 10 // KiB
)

// memory is a figure of a process's status, in KiB.
func memory(t testing.TB, pid int, name string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

// idle waits until the agent has noticed that nobody wants anything, and returns
// what it takes then.
func idle(t testing.TB, pid int) (rss int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if rss = memory(t, pid, "VmRSS"); rss <= idleLimit {
			return rss
		}
		if time.Now().After(deadline) {
			t.Errorf("the idle agent takes %d KiB, more than %d", rss, idleLimit)
			return rss
		}
	}
}

// resetPeak has VmHWM begin anew.
func resetPeak(t *testing.T, pid int) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		t.Skipf("the peak of memory cannot be measured: %v", err)
	}
}

func toolboxOf(t *testing.T, c *http.Client) daytona.Toolbox {
	tb := client.New(func(ctx context.Context) (net.Conn, error) {
		return c.Transport.(*http.Transport).DialContext(ctx, "", "")
	}, nil)
	t.Cleanup(func() { tb.Close() })
	return tb
}

// TestScale holds the agent to its limits, as a process of its own.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	bin := build(t)

	t.Run("Idle", func(t *testing.T) {
		cmd, c, _ := inherit(t, bin, toolbox.Config{WorkDir: t.TempDir()}, nil)
		resp, err := c.Get("http://agent/version")
		body(t, resp, err)
		started := memory(t, cmd.Process.Pid, "VmRSS")
		before := idle(t, cmd.Process.Pid)
		execute(t, c, "true")
		conn, err := toolboxOf(t, c).SSH().Dial(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, len("SSH-2.0-"))); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		used := memory(t, cmd.Process.Pid, "VmRSS")
		t.Logf("resident: %d KiB after the start, then %d KiB; after a command and a connection with SSH %d KiB, then %d KiB", started, before, used, idle(t, cmd.Process.Pid))
	})

	t.Run("Output", func(t *testing.T) {
		cmd, c, _ := inherit(t, bin, toolbox.Config{WorkDir: t.TempDir()}, nil)
		p := toolboxOf(t, c).Process()
		const size = 1 << 30
		run := func(size int64) {
			t.Helper()
			var got atomic.Int64
			command := p.Command(t.Context(), "head", "-c", strconv.FormatInt(size, 10), "/dev/zero")
			command.Stdout = countWriter{&got}
			if err := command.Run(); err != nil || got.Load() != size {
				t.Fatalf("%d bytes of %d: %v", got.Load(), size, err)
			}
		}
		run(1 << 20) // what only the first one costs
		runtime.GC()
		resetPeak(t, cmd.Process.Pid)
		resetPeak(t, os.Getpid())
		agent, here := memory(t, cmd.Process.Pid, "VmHWM"), memory(t, os.Getpid(), "VmHWM")
		begin := time.Now()
		run(size)
		took := time.Since(begin)
		agentPeak, herePeak := memory(t, cmd.Process.Pid, "VmHWM"), memory(t, os.Getpid(), "VmHWM")
		t.Logf("1 GiB in %v; peak of the agent %d KiB, %d before; of the client %d KiB, %d before", took, agentPeak, agent, herePeak, here)
		if agentPeak-agent > growthLimit || herePeak-here > growthLimit {
			t.Error("memory grows with the output")
		}
	})

	t.Run("Sessions", func(t *testing.T) {
		cmd, c, log := inherit(t, bin, toolbox.Config{WorkDir: t.TempDir()}, nil)
		p := toolboxOf(t, c).Process()
		const n = 1000
		var wg sync.WaitGroup
		errs := make([]error, n)
		sessions := make([]daytona.Session, n)
		width := make(chan struct{}, 50) // sessions that are being made; all of them live at once
		for i := range n {
			wg.Go(func() {
				width <- struct{}{}
				defer func() { <-width }()
				if sessions[i], errs[i] = p.CreateSession(t.Context(), fmt.Sprint("s", i)); errs[i] == nil {
					_, errs[i] = sessions[i].Run(t.Context(), fmt.Sprintf("mine=%d", i))
				}
			})
		}
		wg.Wait()
		for i := range n {
			wg.Go(func() {
				if errs[i] != nil {
					return
				}
				r, err := sessions[i].Run(t.Context(), "seq 1 $((mine + 100)); echo $mine >&2")
				if want := seq(i + 100); err == nil && (r.Stdout != want || r.Stderr != fmt.Sprintln(i)) {
					err = fmt.Errorf("session %d printed %d bytes, want %d, and %q", i, len(r.Stdout), len(want), r.Stderr)
				}
				errs[i] = err
			})
		}
		wg.Wait()
		failed := 0
		for _, err := range errs {
			if err != nil {
				if failed++; failed < 5 {
					t.Error(err)
				}
			}
		}
		t.Logf("%d sessions, %d failed; the agent takes %d KiB", n, failed, memory(t, cmd.Process.Pid, "VmRSS"))
		if failed > 0 {
			t.Logf("the agent says: %s", log)
		}
	})

	t.Run("Terminals", func(t *testing.T) {
		cmd, c, _ := inherit(t, bin, toolbox.Config{WorkDir: t.TempDir()}, nil)
		p := toolboxOf(t, c).Process()
		const n, lines = 200, 500
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { errs[i] = terminal(t.Context(), p, i, lines) })
		}
		wg.Wait()
		failed := 0
		for _, err := range errs {
			if err != nil {
				if failed++; failed < 5 {
					t.Error(err)
				}
			}
		}
		t.Logf("%d terminals of %d lines each, %d failed; the agent takes %d KiB", n, lines, failed, memory(t, cmd.Process.Pid, "VmRSS"))
	})
}

// terminal has a terminal print many lines, all of which must come.
func terminal(ctx context.Context, p daytona.Process, id, lines int) error {
	pty, err := p.CreatePTY(ctx, daytona.PTYOptions{ID: fmt.Sprint("t", id)})
	if err != nil {
		return err
	}
	defer pty.Close()
	if _, err := fmt.Fprintf(pty, "stty -echo; echo be''gin; seq -f 'line %%.0f of %d' 1 %d; exit 0\n", id, lines); err != nil {
		return err
	}
	in, next, begun := bufio.NewReader(pty), 1, false
	for {
		line, err := in.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasSuffix(line, "begin"):
			begun = true
		case begun && line == fmt.Sprintf("line %d of %d", next, id):
			next++
		case begun && strings.HasPrefix(line, "line "):
			return fmt.Errorf("terminal %d: %q in place of line %d", id, line, next)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("terminal %d after line %d: %w", id, next-1, err)
		}
	}
	if next != lines+1 {
		return fmt.Errorf("terminal %d: it ended after line %d", id, next-1)
	}
	return nil
}

func seq(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

type countWriter struct{ n *atomic.Int64 }

func (w countWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return len(p), nil
}

// BenchmarkAgent has benchmarks of the agent without a backend.
func BenchmarkAgent(b *testing.B) {
	b.Run("Start", benchmarkStart)
}

// benchmarkStart is the time from fork to the first answer; a fork and exec of
// /bin/true is its peer.
func benchmarkStart(b *testing.B) {
	bin := os.Getenv("DAYTONA_AGENT")
	if bin == "" {
		b.Skip("DAYTONA_AGENT does not say where the agent is")
	}
	var times, peers []time.Duration
	for b.Loop() {
		dir := b.TempDir()
		begin := time.Now()
		cmd := exec.Command(bin, "serve", "--config-fd", "-1", "--listen", "unix://"+dir+"/s")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		for {
			conn, err := net.Dial("unix", dir+"/s")
			if err != nil {
				time.Sleep(50 * time.Microsecond)
				continue
			}
			fmt.Fprint(conn, "GET /version HTTP/1.0\r\n\r\n")
			_, err = bufio.NewReader(conn).ReadString('\n')
			conn.Close()
			if err == nil {
				break
			}
		}
		times = append(times, time.Since(begin))
		cmd.Process.Kill()
		cmd.Wait()
		begin = time.Now()
		if err := exec.Command("/bin/true").Run(); err != nil {
			b.Fatal(err)
		}
		peers = append(peers, time.Since(begin))
	}
	slices.Sort(times)
	slices.Sort(peers)
	p50 := times[len(times)/2]
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(p50)/1e6, "ms/p50")
	b.ReportMetric(float64(times[len(times)*95/100])/1e6, "ms/p95")
	b.ReportMetric(float64(p50)/float64(peers[len(peers)/2]), "x_forkexec")
}
