package executor_test

import (
	"fmt"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// BenchmarkCreate compares what a sandbox costs with the backend alone and by
// the way of a job, in one process with SQLite in a file.
func BenchmarkCreate(b *testing.B) {
	client := daytonatest.Client(b)
	snapshot, err := client.CreateSnapshot(b.Context(), daytona.SnapshotSpec{Name: "base", Image: daytona.ImageHost})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("backend", func(b *testing.B) {
		for b.Loop() {
			sb, err := client.Create(b.Context(), daytona.Spec{Snapshot: snapshot.Name, Persistent: true, User: "daytona"})
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := sb.Delete(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("job", func(b *testing.B) {
		s := newServer(b, storetest.Open(b, storetest.SQLite(b)))
		run(b, s.config(client))
		i := 0
		for b.Loop() {
			i++
			id := fmt.Sprintf("bench-%d", i)
			s.must(job.New{Type: job.CreateSandbox, ResourceID: id, Payload: payload(id, "base")})
			b.StopTimer()
			s.must(job.New{Type: job.DestroySandbox, ResourceID: id})
			b.StartTimer()
		}
	})
}

// BenchmarkJob is what a job costs by itself.
func BenchmarkJob(b *testing.B) {
	s := newServer(b, storetest.Open(b, storetest.SQLite(b)))
	run(b, s.config(daytona.New(daytonatest.NewFake())))
	s.must(job.New{Type: job.CreateSandbox, ResourceID: "a", Payload: payload("a", "")})
	for b.Loop() {
		s.must(job.New{Type: job.StartSandbox, ResourceID: "a"})
	}
}
