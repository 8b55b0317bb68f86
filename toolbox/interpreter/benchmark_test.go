package interpreter_test

import (
	"os/exec"
	"slices"
	"testing"
	"time"
)

// BenchmarkRun measures 1+1 in an interpreter that has been used before, and as
// x_python its p50 over that of a bare "python3 -c 1+1".
func BenchmarkRun(b *testing.B) {
	needs(b, "python3", "-c", "pass")
	a := startAgent(b)
	a.run("1+1", nil)
	var times, peer []time.Duration
	for b.Loop() {
		begin := time.Now()
		a.run("1+1", nil)
		times = append(times, time.Since(begin))
		if len(peer) < 20 {
			begin = time.Now()
			if err := exec.Command("/usr/bin/python3", "-c", "1+1").Run(); err != nil {
				b.Fatal(err)
			}
			peer = append(peer, time.Since(begin))
		}
	}
	slices.Sort(times)
	slices.Sort(peer)
	p50 := times[len(times)/2]
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(p50)/1e6, "ms/p50")
	b.ReportMetric(float64(times[len(times)*95/100])/1e6, "ms/p95")
	b.ReportMetric(float64(p50)/float64(peer[len(peer)/2]), "x_python")
}
