// Package objects has the object storage that clients put the contexts of
// builds into, and that volumes are in: one of its own, in a directory, that
// speaks S3 to whoever has a credential; or any other by its address.
package objects

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

const (
	defaultRegion = "us-east-1"
	// pushValid is how long clients may push.
	pushValid = time.Hour
	// readValid is how long a runner may read the contexts of a build that
	// waits for its turn.
	readValid = 6 * time.Hour
)

// External is an object storage that is not this server's.
type External struct {
	// Endpoint is an http or https URL.
	Endpoint string
	// Public is the endpoint as clients see it. Defaults to Endpoint.
	Public string
	// Region defaults to us-east-1.
	Region string
	// AccessKey and SecretKey may read and write Bucket, which exists.
	AccessKey, SecretKey, Bucket string
	// STS is the endpoint that gives credentials for a time: MinIO's is that of
	// its storage. Defaults to Amazon's, with Role.
	STS string
	// Role is the ARN of the role whose credentials clients get.
	Role string
}

// Config says what a Service works with.
type Config struct {
	DB *store.DB
	// Key makes the secrets of credentials: 32 random bytes that stay the same.
	Key []byte
	// Store is served as S3 at URL. Nil with External.
	Store *Store
	// URL is where clients reach [Service.Handler], such as
	// "https://api.example.com".
	URL string
	// Bucket is that of contexts. Defaults to "daytona-builds".
	Bucket string
	// External is used in the place of Store.
	External *External
	// ParcelUsed says whether anybody needs what runners have put here under a
	// reference; see [Service.Parcel]. Defaults to everything being needed.
	ParcelUsed func(ctx context.Context, ref string) (bool, error)
	Now        func() time.Time
	Log        *slog.Logger
}

// Service gives out credentials.
type Service struct {
	Config
	db     *store.DB
	url    *url.URL
	client *minio.Client // of External
}

// New returns a Service, and makes the bucket of contexts.
func New(c Config) (*Service, error) {
	const op = "open object storage"
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Bucket == "" {
		c.Bucket = "daytona-builds"
	}
	s := &Service{Config: c, db: c.DB}
	if e := c.External; e != nil {
		u, err := url.Parse(e.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || strings.Trim(u.Path, "/") != "" {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Endpoint", Message: "must be an http or https URL without a path, user and password"}
		}
		if e.AccessKey == "" || e.SecretKey == "" || e.Bucket == "" {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Bucket", Value: e.Bucket, Message: "bucket, access key and secret key are required"}
		}
		region := e.Region
		if region == "" {
			region = defaultRegion
		}
		s.client, err = minio.New(u.Host, &minio.Options{Creds: credentials.NewStaticV4(e.AccessKey, e.SecretKey, ""), Secure: u.Scheme == "https",
			Region: region, BucketLookup: minio.BucketLookupPath})
		if err != nil {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Message: "the external object storage can't be used", Err: err}
		}
		return s, nil
	}
	if c.Store == nil {
		return s, nil // nothing is configured: every use says so
	}
	if len(c.Key) < 32 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Key", Message: "must have at least 32 bytes"}
	}
	var err error
	if s.url, err = url.Parse(c.URL); err != nil || s.url.Host == "" || s.url.User != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "URL", Message: "must be an http or https URL"}
	}
	if err := c.Store.CreateBucket(c.Bucket); err != nil && err != errTaken {
		return nil, err
	}
	return s, nil
}

// grant is one row: a credential without its secret, which is made of the
// access key by the key of the server.
type grant struct {
	bun.BaseModel `bun:"table:object_grants,alias:grant_"`

	AccessKey      string     `bun:"access_key,pk"`
	OrganizationID string     `bun:"organization_id,notnull"`
	Purpose        string     `bun:"purpose,notnull"`
	Bucket         string     `bun:"bucket,notnull"`
	Prefix         string     `bun:"prefix,notnull"`
	Delete         bool       `bun:"may_delete,notnull"`
	TokenHash      string     `bun:"token_hash,notnull"`
	Expires        *time.Time `bun:"expires_at"`
}

func (s *Service) secret(accessKey string) string {
	h := hmac.New(sha256.New, s.Key)
	h.Write([]byte("object grant\x00" + accessKey))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// Handler serves the embedded storage, and nothing if there is none. It is to get
// the requests that [Claims] tells, or all below the path of the URL.
func (s *Service) Handler() http.Handler {
	if s.Store == nil || s.External != nil {
		return http.NotFoundHandler()
	}
	return &Handler{Store: s.Store, Grants: s.lookup, Prefix: strings.TrimSuffix(s.url.Path, "/"), Now: s.Now, Log: s.Log}
}

func (s *Service) lookup(ctx context.Context, accessKey string) (*Grant, error) {
	g := &grant{AccessKey: accessKey}
	// Who it is for is what is being found out.
	if err := s.db.All(ctx).NewSelect().Model(g).WherePK().Scan(ctx); store.IsNone(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	out := &Grant{OrganizationID: g.OrganizationID, Bucket: g.Bucket, Prefix: g.Prefix, Delete: g.Delete, TokenHash: g.TokenHash, Secret: s.secret(accessKey)}
	if g.Expires != nil {
		out.Expires = *g.Expires
	}
	return out, nil
}

// Access is what a client needs to push contexts.
type Access struct {
	AccessKey, Secret, SessionToken string
	URL, Bucket, Region             string
}

func unconfigured() error {
	return &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage is not configured"}
}

func accessKey() string { return "DT" + rand.Text() }

// PushAccess gives an organization an hour in which to put objects below its own
// prefix, read them and list them.
func (s *Service) PushAccess(ctx context.Context, organizationID string) (*Access, error) {
	if organizationID == "" || strings.ContainsAny(organizationID, "/*?${}\"") {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: "Invalid organization"}
	}
	if s.External != nil {
		return s.assume(ctx, organizationID)
	}
	if s.Store == nil {
		return nil, unconfigured()
	}
	token := rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(token))
	now := s.Now().UTC()
	g := &grant{AccessKey: accessKey(), OrganizationID: organizationID, Purpose: "push", Bucket: s.Bucket, Prefix: organizationID + "/",
		TokenHash: hex.EncodeToString(sum[:]), Expires: new(now.Add(pushValid))}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		// Those of all organizations that are over.
		if _, err := s.db.All(ctx).NewDelete().Model((*grant)(nil)).Where("expires_at < ?", now.Add(-pushValid)).Exec(ctx); err != nil {
			return err
		}
		_, err := s.db.All(ctx).NewInsert().Model(g).Exec(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Access{AccessKey: g.AccessKey, Secret: s.secret(g.AccessKey), SessionToken: token, URL: strings.TrimSuffix(s.URL, "/"), Bucket: s.Bucket, Region: defaultRegion}, nil
}

// Revoke ends the credentials to push that an organization has.
func (s *Service) Revoke(ctx context.Context, organizationID string) error {
	_, err := s.db.In(ctx, organizationID).Delete((*grant)(nil)).Where("purpose = ?", "push").Exec(ctx)
	return err
}

// policy is what an organization may do in an external storage.
func policy(bucket, organizationID string) string {
	type statement struct {
		Effect    string
		Action    []string
		Resource  []string
		Condition any `json:",omitempty"`
	}
	data, err := json.Marshal(struct {
		Version   string
		Statement []statement
	}{"2012-10-17", []statement{
		{"Allow", []string{"s3:PutObject", "s3:GetObject"}, []string{"arn:aws:s3:::" + bucket + "/" + organizationID + "/*"}, nil},
		{"Allow", []string{"s3:ListBucket"}, []string{"arn:aws:s3:::" + bucket}, map[string]any{"StringLike": map[string]any{"s3:prefix": []string{organizationID + "/*", organizationID}}}},
	}})
	if err != nil {
		panic(err) // strings only
	}
	return string(data)
}

func (s *Service) assume(ctx context.Context, organizationID string) (*Access, error) {
	e := s.External
	region, sts := e.Region, e.STS
	if region == "" {
		region = defaultRegion
	}
	if sts == "" {
		sts = "https://sts." + region + ".amazonaws.com"
	}
	provider, err := credentials.NewSTSAssumeRole(sts, credentials.STSAssumeRoleOptions{
		AccessKey: e.AccessKey, SecretKey: e.SecretKey, Policy: policy(e.Bucket, organizationID), Location: region,
		DurationSeconds: int(pushValid / time.Second), RoleARN: e.Role, RoleSessionName: "daytona-" + organizationID,
	})
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage gives no credentials", Err: err}
	}
	v, err := provider.GetWithContext(&credentials.CredContext{Client: &http.Client{Timeout: 20 * time.Second}})
	if err != nil {
		s.Log.Error("AssumeRole", "err", err)
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage gives no credentials"}
	}
	public := e.Public
	if public == "" {
		public = e.Endpoint
	}
	return &Access{AccessKey: v.AccessKeyID, Secret: v.SecretAccessKey, SessionToken: v.SessionToken, URL: strings.TrimSuffix(public, "/"), Bucket: e.Bucket, Region: region}, ctx.Err()
}

// contextKey is where clients put what a build copies from.
func contextKey(organizationID, hash string) string {
	return organizationID + "/" + hash + "/context.tar"
}

// Contexts returns URLs of the archives that an organization has pushed, in the
// order of their hashes, which read them for six hours.
func (s *Service) Contexts(ctx context.Context, organizationID string, hashes []string) ([]string, error) {
	if s.Store == nil && s.External == nil {
		return nil, unconfigured()
	}
	if len(hashes) == 0 {
		return nil, nil
	}
	urls := make([]string, len(hashes))
	if s.External != nil {
		for i, h := range hashes {
			u, err := s.client.PresignedGetObject(ctx, s.External.Bucket, contextKey(organizationID, h), readValid, nil)
			if err != nil {
				return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage does not answer", Err: err}
			}
			urls[i] = u.String()
		}
		return urls, nil
	}
	for _, h := range hashes {
		if _, err := s.Store.Stat(s.Bucket, contextKey(organizationID, h)); err == errNoKey {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("The build context %s was not uploaded", h)}
		} else if err != nil {
			return nil, err
		}
	}
	now := s.Now().UTC()
	g := &grant{AccessKey: accessKey(), OrganizationID: organizationID, Purpose: "read", Bucket: s.Bucket, Prefix: organizationID + "/", Expires: new(now.Add(readValid))}
	if _, err := s.db.All(ctx).NewInsert().Model(g).Exec(ctx); err != nil {
		return nil, err
	}
	for i, h := range hashes {
		urls[i] = presign(s.url, "/"+s.Bucket+"/"+contextKey(organizationID, h), g.AccessKey, s.secret(g.AccessKey), defaultRegion, now, readValid)
	}
	return urls, nil
}

// OpenContext returns the archive that an organization has pushed under a hash;
// KindNotFound if there is none. The caller closes it.
func (s *Service) OpenContext(ctx context.Context, organizationID, hash string) (io.ReadCloser, error) {
	missing := &daytona.Error{Kind: daytona.KindNotFound, Op: "open build context", Subject: hash, Message: "it was not uploaded"}
	if s.External != nil {
		o, err := s.client.GetObject(ctx, s.External.Bucket, contextKey(organizationID, hash), minio.GetObjectOptions{})
		if err == nil {
			_, err = o.Stat()
		}
		switch {
		case err == nil:
			return o, nil
		case minio.ToErrorResponse(err).Code == "NoSuchKey":
			return nil, missing
		}
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage does not answer", Err: err}
	}
	if s.Store == nil {
		return nil, unconfigured()
	}
	_, f, err := s.Store.Open(s.Bucket, contextKey(organizationID, hash))
	if errors.Is(err, errNoKey) {
		return nil, missing
	} else if err != nil {
		return nil, err
	}
	return f, nil
}

func volumeBucket(id string) string { return "daytona-volume-" + id }

// CreateVolume makes the place of a volume. It does nothing if it is there.
func (s *Service) CreateVolume(ctx context.Context, id string) error {
	switch {
	case s.External != nil:
		// A prefix of the bucket, which needs no making; but it must work.
		for o := range s.client.ListObjectsIter(ctx, s.External.Bucket, minio.ListObjectsOptions{Prefix: volumePrefix(id) + "/", MaxKeys: 1}) {
			if o.Err != nil {
				return &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage does not answer", Err: o.Err}
			}
			break
		}
		return nil
	case s.Store == nil:
		return unconfigured()
	}
	if err := s.Store.CreateBucket(volumeBucket(id)); err != nil && err != errTaken {
		return err
	}
	return nil
}

func volumePrefix(id string) string { return "volumes/" + id }

// DeleteVolume removes a volume with all that is in it. It does nothing if there
// is none.
func (s *Service) DeleteVolume(ctx context.Context, id string) error {
	if s.External != nil {
		objects := make(chan minio.ObjectInfo)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var listErr error
		go func() {
			defer close(objects)
			for o := range s.client.ListObjectsIter(ctx, s.External.Bucket, minio.ListObjectsOptions{Prefix: volumePrefix(id) + "/", Recursive: true}) {
				if o.Err != nil {
					listErr = o.Err
					return
				}
				select {
				case objects <- o:
				case <-ctx.Done():
					return
				}
			}
		}()
		var first error
		for e := range s.client.RemoveObjects(ctx, s.External.Bucket, objects, minio.RemoveObjectsOptions{}) {
			if first == nil {
				first = e.Err
			}
		}
		if first == nil {
			first = listErr
		}
		if first != nil {
			return &daytona.Error{Kind: daytona.KindUnavailable, Message: "Object storage does not answer", Err: first}
		}
		return ctx.Err()
	}
	if s.Store == nil {
		return unconfigured()
	}
	// The credentials first: nobody writes into what is being removed.
	if _, err := s.db.All(ctx).NewDelete().Model((*grant)(nil)).Where("purpose = ?", "volume:"+id).Exec(ctx); err != nil {
		return err
	}
	return s.Store.DeleteBucket(volumeBucket(id), true)
}

// VolumeLocation returns where runners mount a volume from, with a credential
// for it and nothing else, which is good until the volume is deleted. It is for
// runners: it never reaches a client or a sandbox.
func (s *Service) VolumeLocation(ctx context.Context, organizationID, id string) (daytona.S3Location, error) {
	if e := s.External; e != nil {
		return daytona.S3Location{Endpoint: e.Endpoint, Region: e.Region, Bucket: e.Bucket, Prefix: volumePrefix(id), AccessKey: e.AccessKey, SecretKey: e.SecretKey}, nil
	}
	if s.Store == nil {
		return daytona.S3Location{}, unconfigured()
	}
	var g *grant
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		g = &grant{}
		err := s.db.In(ctx, organizationID).Select(g).Where("purpose = ?", "volume:"+id).Order("access_key").Limit(1).Scan(ctx)
		if !store.IsNone(err) {
			return err
		}
		g = &grant{AccessKey: accessKey(), OrganizationID: organizationID, Purpose: "volume:" + id, Bucket: volumeBucket(id), Delete: true}
		_, err = s.db.All(ctx).NewInsert().Model(g).Exec(ctx)
		return err
	})
	if err != nil {
		return daytona.S3Location{}, err
	}
	return daytona.S3Location{Endpoint: s.url.Scheme + "://" + s.url.Host, Region: defaultRegion, Bucket: g.Bucket, AccessKey: g.AccessKey, SecretKey: s.secret(g.AccessKey)}, nil
}
