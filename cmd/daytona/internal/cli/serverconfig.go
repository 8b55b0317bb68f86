package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/cmd/daytona/internal/serving"
	"github.com/daytona-go/daytona/server"
)

// serverFile is a configuration file: that of package server, and what is this
// process's own. Fields that have the tag secret are not printed: all of the
// value, or the password of a URL.
type serverFile struct {
	server.Config `yaml:",inline"`
	// Listen is the address of the API, the dashboard and previews.
	Listen string `yaml:"listen"`
	// Backend is the URL of the runner in this process, or "none".
	Backend  string         `yaml:"backend" secret:"url"`
	TLS      serving.TLS    `yaml:"tls"`
	LogFile  logConfig      `yaml:"log"`
	Shutdown shutdownConfig `yaml:"shutdown"`
	Tracing  tracingConfig  `yaml:"tracing"`
}

// logConfig is the log, on standard error.
type logConfig struct {
	// Level is debug, info, warn or error. Defaults to info, in which each request
	// is a line.
	Level string `yaml:"level"`
	// Format is text or json. Defaults to text.
	Format string `yaml:"format"`
}

// shutdownConfig is how a server ends, in seconds.
type shutdownConfig struct {
	// Delay is how long it goes on after health checks have begun to fail. Defaults
	// to 0.
	Delay int `yaml:"delay"`
	// Grace is how long requests may take to end then. Defaults to 20.
	Grace int `yaml:"grace"`
}

// origins say where the value of a field is from, by its path in a file.
type origins map[string]string

// of is where a field is from: itself, or what it is in.
func (o origins) of(path string) string {
	for p := path; p != ""; {
		if from := o[p]; from != "" {
			return from
		}
		i := strings.LastIndexByte(p, '.')
		p = p[:max(i, 0)]
	}
	// Or one of what is in it.
	for _, p := range slices.Sorted(maps.Keys(o)) {
		if strings.HasPrefix(p, path+".") {
			return o[p]
		}
	}
	return "by default"
}

// load reads the configuration: the file, then the environment, then flags.
func (a *app) loadServer(f *serverFlags) (*serverFile, error) {
	c, from := &serverFile{}, origins{}
	if f.config != "" {
		data, err := os.ReadFile(f.config)
		if err != nil {
			return nil, err
		}
		if err := c.readFile(f.config, data, from); err != nil {
			return nil, err
		}
	}
	if err := c.readEnvironment(os.Getenv, from); err != nil {
		return nil, err
	}
	for _, x := range []struct {
		flag, value string
		at          *string
	}{{"listen", f.listen, &c.Listen}, {"url", f.url, &c.URL}, {"dir", f.dir, &c.Dir}, {"database", f.database, &c.Database}} {
		if x.value != "" {
			*x.at = x.value
			from[x.flag] = "flag --" + x.flag
		}
	}
	if c.Dir == "" {
		dir, err := defaultServiceDir("server")
		if err != nil {
			return nil, err
		}
		c.Dir = dir
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	c.Dir = dir
	c.Version = a.build().Version
	c.Backend = cmp.Or(c.Backend, a.backendURL)
	c.Log = slog.Default()
	if err := c.normalize(); err != nil {
		// Where the value is from is what one has to know to change it.
		if e, ok := errors.AsType[*daytona.Error](err); ok && e.Field != "" {
			return nil, fmt.Errorf("%s: %w", from.of(e.Field), err)
		}
		return nil, err
	}
	return c, nil
}

// normalize is [server.Config.Normalize] for all of the file.
func (c *serverFile) normalize() error {
	wrong := func(field string, value any, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "configure server", Field: field, Value: value, Message: rule}
	}
	c.Listen = cmp.Or(c.Listen, "localhost:3000")
	_, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return wrong("listen", c.Listen, `must be an address with a port, such as ":3000"`)
	}
	c.TLS.ACME.Dir = filepath.Join(c.Dir, "acme")
	if err := c.TLS.Check(); err != nil {
		if e, ok := errors.AsType[*serving.Error](err); ok {
			return wrong("tls."+e.Field, nil, e.Rule)
		}
		return err
	}
	if c.URL == "" {
		scheme, host := "http", "localhost:"+port
		if c.TLS.On() {
			scheme = "https"
			if len(c.TLS.ACME.Domains) > 0 {
				host = c.TLS.ACME.Domains[0]
			}
		}
		c.URL = scheme + "://" + host
	}
	c.LogFile.Level, c.LogFile.Format = strings.ToLower(cmp.Or(c.LogFile.Level, "info")), cmp.Or(c.LogFile.Format, "text")
	if _, ok := logLevels[c.LogFile.Level]; !ok {
		return wrong("log.level", c.LogFile.Level, "must be debug, info, warn or error")
	}
	if f := c.LogFile.Format; f != "text" && f != "json" {
		return wrong("log.format", f, "must be text or json")
	}
	c.Shutdown.Grace = cmp.Or(c.Shutdown.Grace, 20)
	if c.Shutdown.Grace < 1 || c.Shutdown.Grace > 3600 {
		return wrong("shutdown.grace", c.Shutdown.Grace, "must be from 1 to 3600 seconds")
	}
	if c.Shutdown.Delay < 0 || c.Shutdown.Delay > 3600 {
		return wrong("shutdown.delay", c.Shutdown.Delay, "must be from 0 to 3600 seconds")
	}
	if err := c.Tracing.check(); err != nil {
		return err
	}
	return c.Normalize()
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "verbose": slog.LevelDebug, "info": slog.LevelInfo, "log": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// readFile reads a configuration file and says all that is wrong with its form.
func (c *serverFile) readFile(name string, data []byte, from origins) error {
	var root yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&root); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return fmt.Errorf("configuration %s: %w", name, err)
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return fmt.Errorf("configuration %s: must be one document", name)
	}
	r := &reader{name: name, from: from}
	r.read(root.Content[0], reflect.ValueOf(c).Elem(), "")
	return errors.Join(r.wrong...)
}

// reader reads YAML into values, and knows where each was.
type reader struct {
	name  string
	from  origins
	wrong []error
}

func (r *reader) fail(n *yaml.Node, format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Errorf("%s:%d: %s", r.name, n.Line, fmt.Sprintf(format, args...)))
}

// read reads a node into v, which is at a path.
func (r *reader) read(n *yaml.Node, v reflect.Value, path string) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Tag == "!!null" {
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Map:
		if isText(v) {
			break
		}
		if n.Kind != yaml.MappingNode {
			r.fail(n, "%s must have fields of its own", cmp.Or(path, "the configuration"))
			return
		}
		r.fields(n, v, path)
		return
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			r.fail(n, "%s must be a list", path)
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, e := range n.Content {
			r.read(e, list.Index(i), fmt.Sprintf("%s.%d", path, i))
		}
		v.Set(list)
		return
	}
	if n.Kind != yaml.ScalarNode {
		r.fail(n, "%s must be %s", path, wanted(v))
	} else if err := n.Decode(v.Addr().Interface()); err != nil {
		shown := strconv.Quote(n.Value)
		if tail := path[strings.LastIndexByte(path, '.')+1:]; strings.Contains(strings.ToLower(tail), "key") || tail == "password" || tail == "token" {
			shown = "what it has"
		}
		r.fail(n, "%s must be %s, and %s is not", path, wanted(v), shown)
	}
}

// fields reads the fields of a node into those of a struct, or into a map.
func (r *reader) fields(n *yaml.Node, v reflect.Value, path string) {
	known := map[string]reflect.Value{}
	if v.Kind() == reflect.Struct {
		fieldsOf(v, known)
	} else if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		r.from[at] = fmt.Sprintf("%s:%d", r.name, key.Line)
		switch field, ok := known[key.Value]; {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			r.fail(key, "a field must have a name")
		case seen[key.Value]:
			r.fail(key, "%s is set twice", at)
		case v.Kind() == reflect.Map:
			e := reflect.New(v.Type().Elem()).Elem()
			r.read(value, e, at)
			v.SetMapIndex(reflect.ValueOf(key.Value), e)
		case !ok:
			r.fail(key, "there is no field %q%s", at, suggest(key.Value, slices.Collect(maps.Keys(known))))
		default:
			r.read(value, field, at)
		}
		seen[key.Value] = true
	}
}

// fieldsOf adds the fields of a struct, by their names in YAML.
func fieldsOf(v reflect.Value, to map[string]reflect.Value) {
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			fieldsOf(v.Field(i), to)
		case name != "" && name != "-":
			to[name] = v.Field(i)
		}
	}
}

// isText reports whether a struct is written as a scalar.
func isText(v reflect.Value) bool {
	_, ok := v.Addr().Interface().(interface{ UnmarshalText([]byte) error })
	return ok
}

// wanted are words for what a value of a kind is.
func wanted(v reflect.Value) string {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		return "a time with its unit, such as 90s"
	}
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.String:
		return "text"
	}
	return "an address with the length of its prefix, such as 10.0.0.0/8"
}

// pathOf is the path of the field that a pointer points to.
func pathOf(v reflect.Value, pointer any) string {
	known := map[string]reflect.Value{}
	fieldsOf(v, known)
	for name, f := range known {
		if f.Addr().Interface() == pointer {
			return name
		}
		if f.Kind() == reflect.Struct && !isText(f) {
			if rest := pathOf(f, pointer); rest != "" {
				return name + "." + rest
			}
		}
	}
	return ""
}

// suggest asks whether one of the names was meant.
func suggest(word string, names []string) string {
	slices.Sort(names)
	best, least := "", len(word)/2+1
	for _, n := range names {
		if d := distance(strings.ToLower(word), strings.ToLower(n)); d < least {
			best, least = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance is how many letters have to be changed, added or left out to make b
// of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := before
			if a[i] != b[j] {
				d++
			}
			before = row[j+1]
			row[j+1] = min(d, before+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// hidden stands for a secret that is not printed.
const hidden = "******"

// printConfig writes what the configuration comes to, without its secrets.
func (a *app) printConfig(c *serverFile) error {
	shown := *c
	shown.Tracing.Headers = maps.Clone(c.Tracing.Headers)
	hide(reflect.ValueOf(&shown).Elem())
	e := yaml.NewEncoder(a.Stdout)
	e.SetIndent(2)
	if err := e.Encode(&shown); err != nil {
		return err
	}
	return e.Close()
}

func hide(v reflect.Value) {
	for i := range v.NumField() {
		f, kind := v.Field(i), v.Type().Field(i).Tag.Get("secret")
		switch {
		case f.Kind() == reflect.Struct && !isText(f):
			hide(f)
		case kind == "" || f.IsZero():
		case f.Kind() == reflect.Map:
			for _, k := range f.MapKeys() {
				f.SetMapIndex(k, reflect.ValueOf(hidden))
			}
		case kind == "url":
			u, err := url.Parse(f.String())
			if err != nil {
				f.SetString(hidden)
			} else if u.User != nil {
				f.SetString(u.Redacted())
			}
		default:
			f.SetString(hidden)
		}
	}
}

// setting is one variable of the environment that sets a field. The names are
// those that the public documentation of the hosted platform's own server
// uses, where the meaning is the same.
type setting struct {
	name string
	at   func(c *serverFile) any // a pointer to the field
	set  func(c *serverFile, value string) error
}

// parsed is a setting whose value parse reads; rule says what that takes.
func parsed[T any](name string, at func(*serverFile) *T, parse func(string) (T, error), rule string) setting {
	return setting{name, func(c *serverFile) any { return at(c) }, func(c *serverFile, v string) (err error) {
		if *at(c), err = parse(v); err != nil {
			return errors.New(rule)
		}
		return nil
	}}
}

func settings() []setting {
	text := func(name string, at func(*serverFile) *string) setting {
		return setting{name, func(c *serverFile) any { return at(c) }, func(c *serverFile, v string) error { *at(c) = v; return nil }}
	}
	number := func(name string, at func(*serverFile) *float64) setting {
		return parsed(name, at, func(v string) (float64, error) { return strconv.ParseFloat(v, 64) }, "must be a number")
	}
	whole := func(name string, at func(*serverFile) *int) setting {
		return parsed(name, at, strconv.Atoi, "must be a whole number")
	}
	span := func(name string, at func(*serverFile) *time.Duration) setting {
		return parsed(name, at, time.ParseDuration, "must be a time with its unit, such as 90s")
	}
	boolean := func(name string, at func(*serverFile) *bool) setting {
		return parsed(name, at, strconv.ParseBool, "must be true or false")
	}
	all := []setting{
		{"PORT", func(c *serverFile) any { return &c.Listen }, func(c *serverFile, v string) error {
			if _, err := strconv.ParseUint(v, 10, 16); err != nil {
				return errors.New("must be a port, from 0 to 65535")
			}
			c.Listen = ":" + v
			return nil
		}},
		text("APP_URL", func(c *serverFile) *string { return &c.URL }),
		text("ENVIRONMENT", func(c *serverFile) *string { return &c.Environment }),
		boolean("MAINTENANCE_MODE", func(c *serverFile) *bool { return &c.Maintenance }),
		text("ENCRYPTION_KEY", func(c *serverFile) *string { return &c.EncryptionKey }),
		text("ADMIN_API_KEY", func(c *serverFile) *string { return &c.Admin.Key }),
		text("OIDC_ISSUER_BASE_URL", func(c *serverFile) *string { return &c.OIDC.Issuer }),
		text("PUBLIC_OIDC_DOMAIN", func(c *serverFile) *string { return &c.OIDC.PublicIssuer }),
		text("OIDC_CLIENT_ID", func(c *serverFile) *string { return &c.OIDC.ClientID }),
		text("OIDC_AUDIENCE", func(c *serverFile) *string { return &c.OIDC.Audience }),
		text("DEFAULT_SNAPSHOT", func(c *serverFile) *string { return &c.Defaults.Image }),
		text("DEFAULT_REGION_ID", func(c *serverFile) *string { return &c.Defaults.RegionID }),
		text("DEFAULT_REGION_NAME", func(c *serverFile) *string { return &c.Defaults.RegionName }),
		boolean("DEFAULT_REGION_ENFORCE_QUOTAS", func(c *serverFile) *bool { return &c.Defaults.EnforceQuotas }),
		number("DEFAULT_ORG_QUOTA_TOTAL_CPU_QUOTA", func(c *serverFile) *float64 { return &c.Defaults.TotalCPU }),
		number("DEFAULT_ORG_QUOTA_TOTAL_MEMORY_QUOTA", func(c *serverFile) *float64 { return &c.Defaults.TotalMemory }),
		number("DEFAULT_ORG_QUOTA_TOTAL_DISK_QUOTA", func(c *serverFile) *float64 { return &c.Defaults.TotalDisk }),
		number("DEFAULT_ORG_QUOTA_MAX_CPU_PER_SANDBOX", func(c *serverFile) *float64 { return &c.Defaults.MaxCPU }),
		number("DEFAULT_ORG_QUOTA_MAX_MEMORY_PER_SANDBOX", func(c *serverFile) *float64 { return &c.Defaults.MaxMemory }),
		number("DEFAULT_ORG_QUOTA_MAX_DISK_PER_SANDBOX", func(c *serverFile) *float64 { return &c.Defaults.MaxDisk }),
		whole("DEFAULT_ORG_QUOTA_SNAPSHOT_QUOTA", func(c *serverFile) *int { return &c.Defaults.Snapshots }),
		number("DEFAULT_ORG_QUOTA_MAX_SNAPSHOT_SIZE", func(c *serverFile) *float64 { return &c.Defaults.MaxSnapshotSize }),
		whole("DEFAULT_ORG_QUOTA_VOLUME_QUOTA", func(c *serverFile) *int { return &c.Defaults.Volumes }),
		whole("MAX_AUTO_ARCHIVE_INTERVAL", func(c *serverFile) *int { return &c.Defaults.MaxAutoArchive }),
		number("DEFAULT_RUNNER_CPU", func(c *serverFile) *float64 { return &c.Defaults.RunnerCPU }),
		number("DEFAULT_RUNNER_MEMORY", func(c *serverFile) *float64 { return &c.Defaults.RunnerMemory }),
		number("DEFAULT_RUNNER_DISK", func(c *serverFile) *float64 { return &c.Defaults.RunnerDisk }),
		text("PROXY_DOMAIN", func(c *serverFile) *string { return &c.Proxy.Domain }),
		text("PROXY_PROTOCOL", func(c *serverFile) *string { return &c.Proxy.Protocol }),
		text("PROXY_TOOLBOX_BASE_URL", func(c *serverFile) *string { return &c.Proxy.ToolboxURL }),
		text("PROXY_API_KEY", func(c *serverFile) *string { return &c.Services.ProxyKey }),
		text("SSH_GATEWAY_API_KEY", func(c *serverFile) *string { return &c.Services.SSHGatewayKey }),
		text("SSH_GATEWAY_URL", func(c *serverFile) *string { return &c.SSH.URL }),
		text("OTEL_COLLECTOR_API_KEY", func(c *serverFile) *string { return &c.Services.CollectorKey }),
		text("HEALTH_CHECK_API_KEY", func(c *serverFile) *string { return &c.Services.HealthCheckKey }),
		text("S3_ENDPOINT", func(c *serverFile) *string { return &c.Objects.Endpoint }),
		text("S3_STS_ENDPOINT", func(c *serverFile) *string { return &c.Objects.STSEndpoint }),
		text("S3_REGION", func(c *serverFile) *string { return &c.Objects.Region }),
		text("S3_ACCESS_KEY", func(c *serverFile) *string { return &c.Objects.AccessKey }),
		text("S3_SECRET_KEY", func(c *serverFile) *string { return &c.Objects.SecretKey }),
		text("S3_DEFAULT_BUCKET", func(c *serverFile) *string { return &c.Objects.Bucket }),
		text("S3_ACCOUNT_ID", func(c *serverFile) *string { return &c.Objects.AccountID }),
		text("S3_ROLE_NAME", func(c *serverFile) *string { return &c.Objects.RoleName }),
		text("DAYTONA_SERVER_DIR", func(c *serverFile) *string { return &c.Dir }),
		text("DAYTONA_SERVER_LISTEN", func(c *serverFile) *string { return &c.Listen }),
		text("DAYTONA_SERVER_URL", func(c *serverFile) *string { return &c.URL }),
		text("DAYTONA_SERVER_DATABASE", func(c *serverFile) *string { return &c.Database }),
		text("DAYTONA_SERVER_REDIS", func(c *serverFile) *string { return &c.Redis }),
		text("DAYTONA_SERVER_BACKEND", func(c *serverFile) *string { return &c.Backend }),
		text("DAYTONA_SERVER_METRICS_LISTEN", func(c *serverFile) *string { return &c.Metrics.Listen }),
		text("DAYTONA_SERVER_METRICS_TOKEN", func(c *serverFile) *string { return &c.Metrics.Token }),
		text("DAYTONA_SERVER_TLS_CERT", func(c *serverFile) *string { return &c.TLS.Cert }),
		text("DAYTONA_SERVER_TLS_KEY", func(c *serverFile) *string { return &c.TLS.Key }),
		text("LOG_LEVEL", func(c *serverFile) *string { return &c.LogFile.Level }),
		text("DAYTONA_SERVER_SSH_LISTEN", func(c *serverFile) *string { return &c.SSH.Listen }),
		span("DAYTONA_SERVER_RUNNERS_SILENCE", func(c *serverFile) *time.Duration { return &c.Runners.Silence }),
		span("DAYTONA_SERVER_RUNNERS_LOST_AFTER", func(c *serverFile) *time.Duration { return &c.Runners.LostAfter }),
		text("DAYTONA_SERVER_ADMIN_EMAIL", func(c *serverFile) *string { return &c.Admin.Email }),
		text("DAYTONA_SERVER_ADMIN_PASSWORD", func(c *serverFile) *string { return &c.Admin.Password }),
	}
	for _, name := range []string{"anonymous", "failed-auth", "authenticated", "sandbox-create", "sandbox-lifecycle"} {
		variable := "RATE_LIMIT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		limit := func(suffix string, at func(*server.LimitConfig) *int) setting {
			return setting{variable + suffix, nil, func(c *serverFile, v string) error {
				n, err := strconv.Atoi(v)
				if err != nil {
					return errors.New("must be a whole number")
				}
				if c.Limits == nil {
					c.Limits = server.LimitsConfig{}
				}
				l := c.Limits[name]
				*at(&l) = n
				c.Limits[name] = l
				return nil
			}}
		}
		all = append(all, limit("_TTL", func(l *server.LimitConfig) *int { return &l.TTL }), limit("_LIMIT", func(l *server.LimitConfig) *int { return &l.Limit }))
	}
	return all
}

// readEnvironment sets what variables of the environment set. Those of a
// database and of Redis are parts of a URL.
func (c *serverFile) readEnvironment(getenv func(string) string, from origins) error {
	var wrong []error
	for _, s := range settings() {
		if v := getenv(s.name); v != "" {
			if err := s.set(c, v); err != nil {
				wrong = append(wrong, fmt.Errorf("environment variable %s = %q: %w", s.name, v, err))
				continue
			}
			path := ""
			if s.at != nil {
				path = pathOf(reflect.ValueOf(c).Elem(), s.at(c))
			} else {
				name, _, _ := strings.Cut(strings.TrimPrefix(s.name, "RATE_LIMIT_"), "_TTL")
				name, _, _ = strings.Cut(name, "_LIMIT")
				path = "limits." + strings.ToLower(strings.ReplaceAll(name, "_", "-"))
			}
			from[path] = "environment variable " + s.name
		}
	}
	if host := getenv("DB_HOST"); host != "" && c.Database == "" {
		u := &url.URL{Scheme: "postgres", Host: net.JoinHostPort(host, cmp.Or(getenv("DB_PORT"), "5432")), Path: "/" + cmp.Or(getenv("DB_DATABASE"), "daytona")}
		u.User = url.UserPassword(getenv("DB_USERNAME"), getenv("DB_PASSWORD"))
		if getenv("DB_TLS_ENABLED") != "true" {
			u.RawQuery = "sslmode=disable"
		}
		c.Database = u.String()
		from["database"] = "environment variable DB_HOST"
	}
	if host := getenv("REDIS_HOST"); host != "" && c.Redis == "" {
		u := &url.URL{Scheme: "redis", Host: net.JoinHostPort(host, cmp.Or(getenv("REDIS_PORT"), "6379"))}
		if getenv("REDIS_TLS") == "true" {
			u.Scheme = "rediss"
		}
		if p := getenv("REDIS_PASSWORD"); p != "" {
			u.User = url.UserPassword("", p)
		}
		c.Redis = u.String()
		from["redis"] = "environment variable REDIS_HOST"
	}
	return errors.Join(wrong...)
}
