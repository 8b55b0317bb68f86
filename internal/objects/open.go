package objects

import (
	"context"
	"net/url"
	"strings"
	"sync"

	"github.com/daytona-go/daytona"
)

// registered is written by init functions, like the registry of daytona.Register.
var registered struct {
	sync.Mutex
	open map[string]func(ctx context.Context, raw string) (Store, error)
}

// Register makes [Open] take URLs of a scheme. open connects to nothing. It
// panics when it is called twice for one scheme.
func Register(scheme string, open func(ctx context.Context, raw string) (Store, error)) {
	registered.Lock()
	defer registered.Unlock()
	if registered.open[scheme] != nil {
		panic("objects: Register called twice for " + scheme)
	}
	if registered.open == nil {
		registered.open = map[string]func(ctx context.Context, raw string) (Store, error){}
	}
	registered.open[scheme] = open
}

// packages are the import paths that make schemes known.
var packages = map[string]string{"s3": "github.com/daytona-go/daytona/archive/s3"}

// IsURL reports whether Open takes where for a URL, not for a directory.
func IsURL(where string) bool { return strings.Contains(where, "://") }

// Open opens what an option called field says: a directory, or a URL of a scheme
// that is registered. A URL with a user or a password is refused, and no error
// shows it: credentials are none of a URL's business.
func Open(ctx context.Context, field, where string) (Store, error) {
	refuse := func(kind daytona.Kind, value any, why string) (Store, error) {
		return nil, &daytona.Error{Kind: kind, Op: "open object storage", Field: field, Value: value, Message: why}
	}
	if !IsURL(where) {
		return OpenDir(where)
	}
	scheme, rest, _ := strings.Cut(where, "://")
	host, _, _ := strings.Cut(rest, "/")
	u, err := url.Parse(where)
	if strings.Contains(host, "@") || err == nil && u.User != nil {
		return refuse(daytona.KindInvalid, nil, "the URL must have no user and password: credentials come from the environment")
	}
	if err != nil {
		return refuse(daytona.KindInvalid, nil, "not a URL: write s3://bucket/prefix?endpoint=https://host&region=name")
	}
	registered.Lock()
	open := registered.open[scheme]
	registered.Unlock()
	if open != nil {
		return open(ctx, where)
	}
	if path := packages[scheme]; path != "" {
		return refuse(daytona.KindUnsupported, scheme+"://"+u.Host, "this program was built without it; add: import _ \""+path+"\"")
	}
	return refuse(daytona.KindInvalid, scheme+"://"+u.Host, "give a directory, or a URL that begins with s3://")
}
