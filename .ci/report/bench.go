package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

var benchLine = regexp.MustCompile(`^Benchmark(\w+)/(\w+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// bench passes on what `go test -bench` prints of backendtest.RunBenchmarks and
// adds a table with a row for each backend. Times are no reason to fail.
func bench(in io.Reader) (ok bool, err error) {
	var order []string
	metrics := map[string]map[string]float64{} // by backend, and by "benchmark unit"
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Println(lines.Text())
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
	fmt.Println("\np50; what is aimed at: create within 1.15 × docker run on docker, exec within 1/25 of docker exec everywhere")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "backend\tcreate, first exec\tdocker run\twarm\texec\tdocker exec\tfork+exec\tupload 256 MiB\tdocker cp\tdownload\tdocker cp\tidle")
	for _, b := range order {
		show := func(metric, format string, change func(float64) float64) string {
			v, ok := metrics[b][metric]
			if !ok {
				return "–"
			}
			return fmt.Sprintf(format, change(v))
		}
		same := func(v float64) float64 { return v }
		part := func(v float64) float64 { return 1 / v }
		fmt.Fprintln(w, strings.Join([]string{
			b,
			show("ColdCreateToExec ms/p50", "%.1f ms", same), show("ColdCreateToExec x_docker", "× %.2f", same),
			show("WarmCreateToExec ms/p50", "%.1f ms", same),
			show("Exec ms/p50", "%.2f ms", same), show("Exec x_docker", "1/%.0f", part), show("Exec x_forkexec", "× %.1f", same),
			show("Upload256MiB ms/p50", "%.0f ms", same), show("Upload256MiB x_docker", "× %.2f", same),
			show("Download256MiB ms/p50", "%.0f ms", same), show("Download256MiB x_docker", "× %.2f", same),
			show("IdleMemory MiB/sandbox", "%.1f MiB", same),
		}, "\t"))
	}
	if len(order) == 0 {
		fmt.Fprintln(w, "no benchmark was run")
	}
	return len(order) > 0, w.Flush()
}
