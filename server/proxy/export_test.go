package proxy

// Forget forgets all that is remembered.
func (p *Proxy) Forget() { p.forget(nil) }

// ParseHost is parseHost: the port, the label and whether that is a token.
func ParseHost(s string, domains ...string) (port int, label string, signed, ok bool) {
	h, ok := parseHost(s, domains)
	return h.port, h.label, h.signed, ok
}

// WithoutToken is withoutToken.
func WithoutToken(raw string) string { return withoutToken(raw) }

// Use is use.
func (p *Proxy) Use(id string) (stop func()) { return p.use(id) }
