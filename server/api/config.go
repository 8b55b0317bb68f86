package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/daytona-go/daytona/internal/wire"
)

// RegisterConfig serves what clients must know of a server before they log in.
// config is asked for every request: it says whether there is maintenance. What
// it leaves empty and the wire demands is filled in.
func RegisterConfig(a *API, config func() wire.DaytonaConfiguration) {
	Handle(a, "ConfigController_getConfig", func(context.Context, *struct{}) (wire.DaytonaConfiguration, error) {
		c := config()
		if c.Version == "" {
			c.Version = a.config.Version
		}
		if c.Announcements == nil {
			c.Announcements = map[string]wire.Announcement{}
		}
		if c.MaxAutoArchiveInterval == 0 {
			c.MaxAutoArchiveInterval = 43200
		}
		if c.Environment == "" {
			c.Environment = "production"
		}
		return c, nil
	})
}

// RegisterHealth serves whether the server is there and whether it is ready.
// checks are what it needs, by name, such as "database". log may be nil.
func RegisterHealth(a *API, checks map[string]func(context.Context) error, log *slog.Logger) {
	if log == nil {
		log = slog.Default()
	}
	Handle(a, "HealthController_live", func(context.Context, *struct{}) (wire.Live, error) {
		return wire.Live{Status: "ok"}, nil
	})
	Stream(a, "HealthController_check", func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		out := wire.HealthControllerCheck200Response{
			Status: new("ok"), Info: map[string]wire.HealthControllerCheck200ResponseInfoValue{},
			Error: map[string]wire.HealthControllerCheck200ResponseInfoValue{}, Details: map[string]wire.HealthControllerCheck200ResponseInfoValue{},
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for name, check := range checks {
			wg.Go(func() {
				err := check(ctx)
				mu.Lock()
				defer mu.Unlock()
				v, in := wire.HealthControllerCheck200ResponseInfoValue{Status: "up"}, out.Info
				if err != nil {
					log.Error("not ready", "check", name, "err", err)
					v.Status, in = "down", out.Error
					out.Status = new("error")
				}
				in[name], out.Details[name] = v, v
			})
		}
		wg.Wait()
		status := http.StatusOK
		if *out.Status != "ok" {
			status = http.StatusServiceUnavailable
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(status)
		return json.NewEncoder(w).Encode(out)
	})
}
