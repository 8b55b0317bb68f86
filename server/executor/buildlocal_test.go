package executor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	_ "github.com/daytona-go/daytona/backend/local/build"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/job"
	"github.com/daytona-go/daytona/toolbox/client"
)

// A Dockerfile with files, by the embedded engine's builder, and a sandbox of
// it.
func TestBuildOnLocal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("building takes root")
	}
	local := daytonatest.Client(t)
	s := newServer(t)
	c := s.config(local)
	c.Contexts = contexts{"org/one": archive(t, file("srv/app.txt", "from a context"))}
	e, _ := run(t, c)
	const ref = "org/daytona-1:daytona"
	j := s.must(job.New{Type: job.BuildSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: ref, Payload: wire.JobSnapshot{
		Snapshot: ref, OrganizationID: "org", Context: []string{"one"}, Dockerfile: "FROM scratch\nENV GREETING=hi\nCOPY /srv/app.txt /app/\n",
	}})
	if !strings.Contains(j.Result, `"hash":"sha256:`) {
		t.Error(j.Result)
	}
	s.must(job.New{Type: job.CreateSandbox, ResourceID: "built", Payload: payload("built", ref)})
	tb := client.New(func(ctx context.Context) (net.Conn, error) { return dialer(e).Dial(ctx, "built") }, nil)
	defer tb.Close()
	if data, err := tb.FileSystem().ReadFile(t.Context(), "/app/app.txt"); err != nil || string(data) != "from a context" {
		t.Errorf("%q %v", data, err)
	}
	s.must(job.New{Type: job.DestroySandbox, ResourceID: "built"})
	logs, err := e.Logs(t.Context(), ref, false)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	head := make([]byte, 4096)
	n, err := logs.Read(head)
	if text := string(head[:n]); err != nil || !strings.Contains(text, "COPY /srv/app.txt") {
		t.Errorf("%q %v", text, err)
	}
	if j := s.do(job.New{Type: job.BuildSnapshot, ResourceType: job.ResourceSnapshot, ResourceID: "org/daytona-2:daytona", Payload: wire.JobSnapshot{
		OrganizationID: "org", Dockerfile: "FROM dir:/etc\n",
	}}); j.Status != job.Failed {
		t.Error(errors.New(j.Error))
	}
}
