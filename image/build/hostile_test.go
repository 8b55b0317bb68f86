//go:build linux

package build_test

import (
	"context"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// TestPipeForPasswd: a step that makes a pipe of what the builder reads on the
// host does not hold the builder.
func TestPipeForPasswd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var log logs
	img := daytona.NewImage(from(t, `RUN rm /etc/passwd /etc/group && mkfifo /etc/passwd /etc/group
USER 1234
RUN id -u
`))
	if _, err := open(t).Build(ctx, img, daytona.BuildOptions{OnLog: log.add}); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
}
