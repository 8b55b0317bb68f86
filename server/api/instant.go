package api

import (
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/daytona-go/daytona"
)

// Instant is a time in a query, in the forms in which clients write it: Python's
// leave the colon out of the zone.
type Instant struct{ time.Time }

// UnmarshalText reads a time. A plus that was not escaped has become a space.
func (i *Instant) UnmarshalText(b []byte) error {
	text := strings.ReplaceAll(string(b), " ", "+")
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			i.Time = t.UTC()
			return nil
		}
	}
	return &daytona.Error{Kind: daytona.KindInvalid, Message: "must be a date in ISO 8601 format"}
}

// Schema is that of a text: a format would be checked before, and more strictly.
func (Instant) Schema(huma.Registry) *huma.Schema { return &huma.Schema{Type: huma.TypeString} }
