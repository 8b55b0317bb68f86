package apikey

import "time"

// SetClock makes it another time.
func (s *Service) SetClock(now func() time.Time) { s.now = now }
