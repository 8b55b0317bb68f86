package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

var benchLine = regexp.MustCompile(`^Benchmark(\w+)/(\w+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// bench passes on what `go test -bench` prints of backendtest.RunBenchmarks and
// adds tables with a row for each backend, for the agent alone, and for the server
// with each database. Times are no reason to fail.
func bench(in io.Reader, out io.Writer) (ok bool, err error) {
	var order []string
	metrics := map[string]map[string]float64{} // by backend, and by "benchmark unit"
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(out, lines.Text())
		m := benchLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		backend := strings.ToLower(m[1])
		if !slices.Contains(order, backend) {
			order = append(order, backend)
			metrics[backend] = map[string]float64{}
		}
		for f := strings.Fields(m[3]); len(f) > 1; f = f[2:] {
			if v, err := strconv.ParseFloat(f[0], 64); err == nil {
				metrics[backend][m[2]+" "+f[1]] = v
			}
		}
	}
	if err := lines.Err(); err != nil {
		return false, err
	}
	table := func(about string, columns ...column) error {
		if !slices.ContainsFunc(order, func(b string) bool {
			return slices.ContainsFunc(columns, func(c column) bool { _, ok := metrics[b][c.metric]; return ok })
		}) {
			return nil
		}
		fmt.Fprintln(out, "\n"+about)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		row := []string{"backend"}
		for _, c := range columns {
			row = append(row, c.head)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
		for _, b := range order {
			row, some := []string{b}, false
			for _, c := range columns {
				v, ok := metrics[b][c.metric]
				switch {
				case !ok:
					row = append(row, "–")
					continue
				case c.part:
					v = 1 / v
				}
				row, some = append(row, fmt.Sprintf(c.format, v)), true
			}
			if some {
				fmt.Fprintln(w, strings.Join(row, "\t"))
			}
		}
		return w.Flush()
	}
	if len(order) == 0 {
		fmt.Fprintln(out, "no benchmark was run")
		return false, nil
	}
	err = table("p50; what is aimed at: create within 1.15 × docker run on docker, exec within 1/25 of docker exec everywhere",
		column{head: "create, first exec", metric: "ColdCreateToExec ms/p50", format: "%.1f ms"}, column{head: "docker run", metric: "ColdCreateToExec x_docker", format: "× %.2f"},
		column{head: "warm", metric: "WarmCreateToExec ms/p50", format: "%.1f ms"},
		column{head: "exec", metric: "Exec ms/p50", format: "%.2f ms"}, column{head: "docker exec", metric: "Exec x_docker", format: "1/%.0f", part: true},
		column{head: "fork+exec", metric: "Exec x_forkexec", format: "× %.1f"},
		column{head: "upload 256 MiB", metric: "Upload256MiB ms/p50", format: "%.0f ms"}, column{head: "docker cp", metric: "Upload256MiB x_docker", format: "× %.2f"},
		column{head: "download", metric: "Download256MiB ms/p50", format: "%.0f ms"}, column{head: "docker cp", metric: "Download256MiB x_docker", format: "× %.2f"},
		column{head: "idle", metric: "IdleMemory MiB/sandbox", format: "%.1f MiB"})
	if err != nil {
		return false, err
	}
	err = table("p50; what is aimed at: a fork of 1 GiB within 2 × a cold create, a cached rebuild within 0.33 × docker build",
		column{head: "fork 1 GiB, stopped", metric: "ForkStopped1GiB ms/p50", format: "%.0f ms"}, column{head: "create", metric: "ForkStopped1GiB x_create", format: "× %.1f"},
		column{head: "started", metric: "ForkStarted1GiB ms/p50", format: "%.0f ms"}, column{head: "create", metric: "ForkStarted1GiB x_create", format: "× %.1f"},
		column{head: "each of 100", metric: "Fork100 ms/p50", format: "%.1f ms"}, column{head: "create", metric: "Fork100 x_create", format: "× %.1f"},
		column{head: "snapshot", metric: "SnapshotCreate ms/p50", format: "%.1f ms"},
		column{head: "from snapshot", metric: "SnapshotRestore ms/p50", format: "%.1f ms"}, column{head: "create", metric: "SnapshotRestore x_create", format: "× %.1f"},
		column{head: "unpack", metric: "Unpack MB/s", format: "%.0f MB/s"}, column{head: "docker load", metric: "Unpack x_dockerload", format: "× %.2f"},
		column{head: "cached rebuild", metric: "Cached ms/p50", format: "%.0f ms"}, column{head: "docker build", metric: "Cached x_docker", format: "× %.2f"})
	if err != nil {
		return false, err
	}
	err = table("toolbox, p50; what is aimed at: a run of the interpreter within 5 ms, the agent's first answer within 10 ms of its start",
		column{head: "exec", metric: "Exec ms/p50", format: "%.2f ms"},
		column{head: "session exec", metric: "SessionExec ms/p50", format: "%.2f ms"}, column{head: "fork+exec", metric: "SessionExec x_forkexec", format: "× %.1f"},
		column{head: "interpreter run", metric: "InterpreterRun ms/p50", format: "%.2f ms"},
		column{head: "PTY echo", metric: "PTYEcho ms/p50", format: "%.3f ms"}, column{head: "bare PTY", metric: "PTYEcho x_pty", format: "× %.1f"},
		column{head: "search", metric: "Search ms/p50", format: "%.0f ms"}, column{head: "grep", metric: "Search x_grep", format: "× %.2f"}, column{head: "rg", metric: "Search x_rg", format: "× %.2f"},
		column{head: "git status", metric: "GitStatus ms/p50", format: "%.0f ms"}, column{head: "git", metric: "GitStatus x_git", format: "× %.2f"},
		column{head: "completion", metric: "Completion ms/p50", format: "%.2f ms"}, column{head: "bare server", metric: "Completion x_lsp", format: "× %.1f"},
		column{head: "start", metric: "Start ms/p50", format: "%.1f ms"}, column{head: "fork+exec", metric: "Start x_forkexec", format: "× %.1f"})
	if err != nil {
		return false, err
	}
	err = table("server, many clients that make a sandbox, run a program and delete it; p50 / p95, and what the engine alone takes for as many",
		column{head: "errors", metric: "Load errors", format: "%.0f"}, column{head: "sandboxes", metric: "Load sandboxes", format: "%.0f"},
		column{head: "a second", metric: "Load sandboxes/s", format: "%.1f"}, column{head: "engine", metric: "Load x_engine", format: "× %.2f"},
		column{head: "create", metric: "Load create-ms/p50", format: "%.0f"}, column{head: "p95", metric: "Load create-ms/p95", format: "%.0f ms"}, column{head: "engine", metric: "Load create-x_engine", format: "× %.2f"},
		column{head: "exec", metric: "Load exec-ms/p50", format: "%.0f"}, column{head: "p95", metric: "Load exec-ms/p95", format: "%.0f ms"},
		column{head: "delete", metric: "Load delete-ms/p50", format: "%.0f"}, column{head: "p95", metric: "Load delete-ms/p95", format: "%.0f ms"},
		column{head: "until gone", metric: "Load gone-ms/p50", format: "%.0f"}, column{head: "p95", metric: "Load gone-ms/p95", format: "%.0f ms"})
	if err != nil {
		return false, err
	}
	memory := func(name string) []column {
		return []column{
			{head: "sandboxes", metric: name + " sandboxes", format: "%.0f"}, {head: "a second", metric: name + " sandboxes/s", format: "%.1f"},
			{head: "RSS, start", metric: name + " rss-start-MiB", format: "%.0f MiB"}, {head: "middle", metric: name + " rss-middle-MiB", format: "%.0f MiB"}, {head: "end", metric: name + " rss-end-MiB", format: "%.0f MiB"},
			{head: "growth", metric: name + " rss-KiB/sandbox", format: "%.2f KiB/sandbox"},
			{head: "heap, start", metric: name + " heap-start-MiB", format: "%.1f MiB"}, {head: "middle", metric: name + " heap-middle-MiB", format: "%.1f MiB"}, {head: "end", metric: name + " heap-end-MiB", format: "%.1f MiB"},
			{head: "goroutines", metric: name + " goroutines-start", format: "%.0f"}, {head: "end", metric: name + " goroutines-end", format: "%.0f"},
		}
	}
	if err = table("server, its memory under that load", memory("Load")...); err != nil {
		return false, err
	}
	if err = table("server, its memory with sandboxes that are none and take no time", memory("Churn")...); err != nil {
		return false, err
	}
	err = table("server; what is aimed at: each page of 2,000 within 20 ms (p95), exec within 2.5 × the agent's, 1,000 WebSockets that cost little",
		column{head: "worst page, p95", metric: "List worst-ms/p95", format: "%.1f ms"}, column{head: "plain, p50", metric: "List plain-ms/p50", format: "%.1f ms"},
		column{head: "exec", metric: "ProxyExec proxy-ms/p50", format: "%.2f ms"}, column{head: "agent", metric: "ProxyExec x_direct", format: "× %.2f"},
		column{head: "WebSockets", metric: "IdleWebSockets sockets", format: "%.0f"},
		column{head: "terminals", metric: "IdleWebSockets terminal-rss-KiB/socket", format: "%.0f KiB"}, column{head: "events", metric: "IdleWebSockets events-rss-KiB/socket", format: "%.0f KiB"},
		column{head: "exec beside", metric: "IdleWebSockets beside-ms/p50", format: "%.2f ms"}, column{head: "before", metric: "IdleWebSockets x_before", format: "× %.2f"})
	if err != nil {
		return false, err
	}
	return true, table("server, pages of 2,000 by HTTP; p50 / p95",
		column{head: "plain", metric: "List plain-ms/p50", format: "%.1f"}, column{head: "p95", metric: "List plain-ms/p95", format: "%.1f ms"},
		column{head: "labels", metric: "List label-ms/p50", format: "%.1f"}, column{head: "p95", metric: "List label-ms/p95", format: "%.1f ms"},
		column{head: "state", metric: "List state-ms/p50", format: "%.1f"}, column{head: "p95", metric: "List state-ms/p95", format: "%.1f ms"},
		column{head: "name", metric: "List name-ms/p50", format: "%.1f"}, column{head: "p95", metric: "List name-ms/p95", format: "%.1f ms"},
		column{head: "200 by name", metric: "List sorted-ms/p50", format: "%.1f"}, column{head: "p95", metric: "List sorted-ms/p95", format: "%.1f ms"},
		column{head: "all of these", metric: "List all-ms/p50", format: "%.1f"}, column{head: "p95", metric: "List all-ms/p95", format: "%.1f ms"},
		column{head: "older API", metric: "List page-ms/p50", format: "%.1f"}, column{head: "p95", metric: "List page-ms/p95", format: "%.1f ms"})
}

// column is one metric of the tables.
type column struct {
	head, metric, format string
	part                 bool // shown is 1/value
}
