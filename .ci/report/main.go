// Command report reads the events of `go test -json` and tells what matters:
// a line for each package, the output of what failed, every test that was
// skipped with its reason, the slowest tests and the sums. It fails if a test failed, or was
// skipped and .ci/allowed-skips does not allow it.
//
//	go test -json ./... | go run ./.ci/report -run root -allow .ci/allowed-skips -totals file
//
// What the suites of package backendtest found out about backends it keeps in a
// file, with -suites; from such a file it writes, or checks, the table in a
// document:
//
//	go run ./.ci/report -suites file -table docs/backends.md [-check]
//
// With -bench it reads what benchmarks of backends print, and puts them side by
// side; see .ci/bench.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

const module = "github.com/daytona-go/daytona"

// event is one of those that `go doc test2json` and `go help buildjson`
// describe.
type event struct {
	Action, Package, Test, Output string
	Key, Value                    string
	Elapsed                       float64
}

// allowance lets tests be skipped.
type allowance struct {
	runs      []string
	pkg, test *regexp.Regexp
	line      string
	used      bool
}

func main() {
	run := flag.String("run", "", "name of the run, for the list of allowed skips")
	allow := flag.String("allow", "", "file with the allowed skips; without it, all are")
	totals := flag.String("totals", "", "file to append the sums to")
	failures := flag.String("failures", "", "file to append the output of what failed to, a second time")
	suites := flag.String("suites", "", "file to append to, or with -table to read, what the suites found out about backends")
	doc := flag.String("table", "", "document to write the table of backends into, instead of all else")
	check := flag.Bool("check", false, "do not write the table, but fail if it would change")
	benchmarks := flag.Bool("bench", false, "read the output of benchmarks of backends, instead of all else")
	flag.Parse()
	var ok bool
	var err error
	if *benchmarks {
		ok, err = bench(os.Stdin, os.Stdout)
	} else if *doc != "" {
		ok, err = writeTable(*doc, *suites, *check)
	} else {
		ok, err = report(os.Stdin, *run, *allow, *totals, *suites, *failures)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func report(in io.Reader, run, allowFile, totals, suitesFile, failuresFile string) (ok bool, err error) {
	failures := io.Discard
	if failuresFile != "" {
		f, err := os.OpenFile(failuresFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return false, err
		}
		defer f.Close()
		failures = f
	}
	broke := func(format string, args ...any) {
		fmt.Printf(format, args...)
		fmt.Fprintf(failures, run+": "+format, args...)
	}
	var allowed []*allowance
	if allowFile != "" {
		if allowed, err = readAllowances(allowFile); err != nil {
			return false, err
		}
	}
	var (
		output                  = map[string]*strings.Builder{} // by package and test
		passed, failed, skipped int
		forbidden, broken       []string
		packages                int
		backends                suites
		took                    = durations{}
	)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // of the go command itself
			continue
		}
		pkg := strings.TrimPrefix(strings.TrimPrefix(e.Package, module), "/")
		if pkg == "" {
			pkg = "."
		}
		backends.see(&e)
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "build-output":
			broke("%s", e.Output)
		case "output":
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			if output[key].Len() < 256<<10 {
				output[key].WriteString(e.Output)
			}
		case "pass", "fail", "skip":
			text := ""
			if output[key] != nil {
				text = output[key].String()
			}
			delete(output, key)
			if e.Test == "" {
				packages++
				fmt.Printf("%-5s %-45s %7.1fs\n", map[string]string{"pass": "ok", "fail": "FAIL", "skip": "-"}[e.Action], pkg, e.Elapsed)
				if e.Action == "fail" {
					broken = append(broken, pkg)
					broke("FAIL  %s\n%s", pkg, indent(text))
					// A process that ends at once leaves tests without a verdict.
					for key, b := range output {
						if p, test, _ := strings.Cut(key, "\x00"); p == e.Package {
							broke("ENDED %s %s\n%s", pkg, test, indent(b.String()))
							delete(output, key)
						}
					}
				}
				continue
			}
			took.add(pkg+" "+e.Test, e.Elapsed)
			switch e.Action {
			case "pass":
				passed++
			case "fail":
				failed++
				broke("FAIL  %s %s (%.1fs)\n%s", pkg, e.Test, e.Elapsed, indent(text))
			case "skip":
				skipped++
				verdict := "skip "
				if allowFile != "" && !permits(allowed, run, pkg, e.Test) {
					verdict = "SKIP!"
					forbidden = append(forbidden, pkg+" "+e.Test)
				}
				fmt.Printf("%s %s %s: %s\n", verdict, pkg, e.Test, reason(text))
			}
		}
	}
	if err := lines.Err(); err != nil {
		return false, err
	}
	fmt.Printf("run %s: %d packages, %d passed, %d failed, %d skipped\n", run, packages, passed, failed, skipped)
	for _, line := range took.slowest(12) {
		fmt.Printf("run %s: slow: %s\n", run, line)
	}
	if len(broken) > 0 {
		fmt.Printf("run %s: packages that failed: %s\n", run, strings.Join(broken, " "))
	}
	if len(forbidden) > 0 {
		broke("skipped although .ci/allowed-skips does not allow it:\n\t%s\n", strings.Join(forbidden, "\n\t"))
	}
	for _, a := range allowed {
		if slices.Contains(a.runs, run) && !a.used {
			fmt.Printf("run %s: note: an allowed skip did not happen: %s\n", run, a.line)
		}
	}
	if packages == 0 {
		broken = append(broken, "none was tested")
	}
	if suitesFile != "" {
		if err := backends.save(suitesFile); err != nil {
			return false, err
		}
	}
	if totals != "" {
		f, err := os.OpenFile(totals, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return false, err
		}
		defer f.Close()
		if _, err := fmt.Fprintln(f, run, passed, max(failed, len(broken)), skipped, len(forbidden)); err != nil {
			return false, err
		}
	}
	return len(broken) == 0 && failed == 0 && len(forbidden) == 0, nil
}

// durations are what tests took, in seconds, by package and name.
type durations map[string]float64

func (d durations) add(test string, seconds float64) {
	if seconds >= 5 {
		d[test] = seconds
	}
}

// slowest lists n tests, without those that took so long for one of their parts.
func (d durations) slowest(n int) []string {
	tests := slices.Collect(maps.Keys(d))
	tests = slices.DeleteFunc(tests, func(test string) bool {
		for part, seconds := range d {
			if strings.HasPrefix(part, test+"/") && seconds > d[test]/3 {
				return true
			}
		}
		return false
	})
	slices.SortFunc(tests, func(a, b string) int { return cmp.Or(cmp.Compare(d[b], d[a]), strings.Compare(a, b)) })
	lines := make([]string, 0, n)
	for _, test := range tests[:min(n, len(tests))] {
		lines = append(lines, fmt.Sprintf("%6.1fs  %s", d[test], test))
	}
	return lines
}

// readAllowances reads lines of "runs package test reason…".
func readAllowances(file string) ([]*allowance, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []*allowance
	for i, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 4 {
			return nil, fmt.Errorf("%s:%d: want: runs package test reason", file, i+1)
		}
		a := &allowance{runs: strings.Split(f[0], ","), line: strings.Join(f[:3], " ")}
		if a.pkg, err = regexp.Compile("^(" + f[1] + ")$"); err == nil {
			a.test, err = regexp.Compile("^(" + f[2] + ")$")
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		all = append(all, a)
	}
	return all, nil
}

func permits(all []*allowance, run, pkg, test string) bool {
	for _, a := range all {
		if slices.Contains(a.runs, run) && a.pkg.MatchString(pkg) && a.test.MatchString(test) {
			a.used = true
			return true
		}
	}
	return false
}

// reason finds what t.Skip was given in a test's output.
func reason(text string) string {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("      " + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}
