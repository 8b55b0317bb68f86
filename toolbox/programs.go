package toolbox

import "net/http"

// programs are the parts of the agent that run something.
type programs struct{}

func newPrograms(s *Server) (*programs, error) { return &programs{}, nil }

func (p *programs) Register(mux *http.ServeMux) {}

func (p *programs) close() error { return nil }
