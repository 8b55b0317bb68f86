package toolbox

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/daytona-go/daytona/toolbox/system"
	"github.com/daytona-go/daytona/toolbox/telemetry"
	"github.com/daytona-go/daytona/toolbox/wire"
)

var errExporterClosed = errors.New("the exporter is closed")

// export begins to export telemetry, if it is wanted.
func (s *Server) export(machine *system.Service) (err error) {
	c := s.config.Telemetry
	if c == nil {
		return nil
	}
	resource := []telemetry.Attribute{{Name: "service.name", Value: "sandbox-" + s.config.SandboxID}}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		resource = append(resource, telemetry.Attribute{Name: name, Value: c.Labels[name]})
	}
	s.exporter, err = telemetry.New(telemetry.Options{
		Endpoint: c.Endpoint, Headers: c.Headers, Resource: resource, Version: s.config.Version, Logger: s.logger,
		MetricInterval: c.MetricInterval, Metrics: func() wire.SystemMetrics { return machine.Metrics(time.Now()) },
	})
	if err != nil {
		return err
	}
	lines := s.exporter.Lines()
	s.exported = make(chan struct{})
	go func() {
		defer close(s.exported)
		// It ends with the entrypoint's log, which programs.close removes.
		err := s.programs.processes.FollowEntrypoint(nil, func(stderr bool, p []byte) error {
			if !lines(stderr, p) {
				return errExporterClosed
			}
			return nil
		})
		if err == nil {
			lines(false, nil)
		}
	}()
	return nil
}

// route is the pattern of a request's route: a name that has nothing of the
// request's own.
func (s *Server) route(r *http.Request) string {
	if strings.HasPrefix(r.URL.Path, "/proxy/") {
		return "/proxy/{port}/"
	}
	_, pattern := s.muxOf(r).Handler(r)
	if _, path, ok := strings.Cut(pattern, " "); ok {
		return path
	}
	if pattern == "" {
		return "unknown"
	}
	return pattern
}
