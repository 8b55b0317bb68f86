package daytona

import "time"

// Snapshot is the saved root filesystem of a sandbox, from which others can
// be created ([Spec.Snapshot]).
type Snapshot struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Image     string    `json:"image,omitempty"`
	SizeBytes int64     `json:"sizeBytes"`
	CreatedAt time.Time `json:"createdAt"`
}
