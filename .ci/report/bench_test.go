package main

import (
	"strings"
	"testing"
)

func TestBench(t *testing.T) {
	var out strings.Builder
	ok, err := bench(strings.NewReader(`goos: linux
BenchmarkLocal/Exec-2         	      30	         1.500 ms/p50	         3.1 ms/p95	         0.02 x_docker	         1.9 x_forkexec
BenchmarkLocal/SessionExec-2  	      30	         2.250 ms/p50	         3.0 x_forkexec
BenchmarkLocal/Search-2       	       3	      1200 ms/p50	         0.5 x_grep	 800 MB/s
BenchmarkDocker/SessionExec 	      30	         4.000 ms/p50
BenchmarkDocker/GitStatus-16 	      3	         90 ms/p50	1.25 x_git
BenchmarkSQLite/Load-2      	       1	 12345 sandboxes	 0 errors	 20.5 sandboxes/s	 1.25 x_engine
BenchmarkAgent/Start-2      	      30	         7.500 ms/p50	         5.000 x_forkexec
PASS
`), &out)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	text := out.String()
	if !strings.HasPrefix(text, "goos: linux\nBenchmarkLocal/Exec-2") {
		t.Error("what was read is not passed on")
	}
	if _, load, _ := strings.Cut(text, "\nserver, many clients"); !strings.Contains(strings.Join(strings.Fields(load), " "), "sqlite 0 12345 20.5 × 1.25 – ") {
		t.Errorf("the server's load:\n%s", load)
	}
	if strings.Contains(text, "pages of 2,000") {
		t.Error("a table without a row")
	}
	_, text, _ = strings.Cut(text, "\ntoolbox, ")
	text, _, _ = strings.Cut(text, "\nserver, ")
	rows := map[string]string{}
	for line := range strings.Lines(text) {
		if name, cells, ok := strings.Cut(line, " "); ok {
			rows[name] = strings.Join(strings.Fields(cells), " ")
		}
	}
	for name, want := range map[string]string{
		"local":  "1.50 ms 2.25 ms × 3.0 – – – 1200 ms × 0.50 – – – – – – –",
		"docker": "– 4.00 ms – – – – – – – 90 ms × 1.25 – – – –",
		"agent":  "– – – – – – – – – – – – – 7.5 ms × 5.0",
	} {
		if rows[name] != want {
			t.Errorf("%s: %q, want %q", name, rows[name], want)
		}
	}
	out.Reset()
	if ok, err := bench(strings.NewReader("PASS\n"), &out); ok || err != nil || !strings.Contains(out.String(), "no benchmark was run") {
		t.Errorf("%v %v %s", ok, err, out.String())
	}
}
