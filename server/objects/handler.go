package objects

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"hash"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Handler serves a [Store] as S3, as far as its clients here need it: buckets
// in the path, signatures of version 4, objects in one piece and in parts,
// copies, conditions, ranges, and lists. There are no versions, no access lists
// and no policies: a credential is for a bucket and a prefix, and for nothing
// else.
type Handler struct {
	Store  *Store
	Grants Grants
	// Prefix of the paths, such as "/s3". Defaults to none.
	Prefix string
	// MaxObject is the largest body in bytes. Defaults to 5 GiB, as S3's.
	MaxObject int64
	// Stall is how long a client may be silent. Defaults to 1 minute.
	Stall time.Duration
	Now   func() time.Time
	Log   *slog.Logger
}

// apiError is an error of S3's.
type apiError struct {
	Code, Message string
	cause         error
}

func errf(code, message string) *apiError { return &apiError{Code: code, Message: message} }

func (e *apiError) Error() string { return e.Code + ": " + e.Message }

var statusOf = map[string]int{
	"AccessDenied": 403, "InvalidAccessKeyId": 403, "SignatureDoesNotMatch": 403, "RequestTimeTooSkewed": 403, "InvalidToken": 403, "ExpiredToken": 403,
	"NoSuchBucket": 404, "NoSuchKey": 404, "NoSuchUpload": 404, "MethodNotAllowed": 405, "BucketAlreadyOwnedByYou": 409, "BucketNotEmpty": 409,
	"MissingContentLength": 411, "PreconditionFailed": 412, "InvalidRange": 416, "InternalError": 500, "NotImplemented": 501, "SlowDown": 503, "XMinioStorageFull": 507,
}

// toAPI is an error as S3 has it.
func toAPI(err error) *apiError {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	for _, x := range []struct {
		err           error
		code, message string
	}{
		{errNoBucket, "NoSuchBucket", "The specified bucket does not exist"},
		{errNoKey, "NoSuchKey", "The specified key does not exist."},
		{errNoUpload, "NoSuchUpload", "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."},
		{errBadPart, "InvalidPart", "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."},
		{errOrder, "InvalidPartOrder", "The list of parts was not in ascending order."},
		{errTooSmall, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed object size."},
		{errTooLarge, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size."},
		{errFull, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."},
		{errTaken, "BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded and you already own it."},
		{errNotEmpty, "BucketNotEmpty", "The bucket you tried to delete is not empty"},
		{errFraming, "InvalidRequest", "The chunks of the body are malformed"},
		{errChunkSig, "SignatureDoesNotMatch", "The signature of a chunk is wrong"},
		{errLength, "IncompleteBody", "The body has another length than was said"},
		{io.ErrUnexpectedEOF, "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header."},
		{errDigest, "BadDigest", "The checksum you specified did not match what we received."},
		{errSHA256, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."},
	} {
		if errors.Is(err, x.err) {
			return &apiError{Code: x.code, Message: x.message, cause: err}
		}
	}
	return &apiError{Code: "InternalError", Message: "We encountered an internal error. Please try again.", cause: err}
}

// call is one request that may do what its grant says.
type call struct {
	h           *Handler
	w           http.ResponseWriter
	r           *http.Request
	q           url.Values
	s           *signed
	bucket, key string
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Accept-Ranges", "bytes")
	c := &call{h: h, w: w, r: r, q: r.URL.Query()}
	if err := c.serve(); err != nil {
		e := toAPI(err)
		if e.Code == "InternalError" && r.Context().Err() == nil {
			log := h.Log
			if log == nil {
				log = slog.Default()
			}
			log.Error("object storage", "method", r.Method, "bucket", c.bucket, "err", e.cause)
		}
		status := statusOf[e.Code]
		if status == 0 {
			status = http.StatusBadRequest
		}
		if status == http.StatusNotModified || r.Method == http.MethodHead {
			w.WriteHeader(status)
			return
		}
		reply(w, status, struct {
			XMLName  xml.Name `xml:"Error"`
			Code     string
			Message  string
			Resource string
		}{Code: e.Code, Message: e.Message, Resource: printable(r.URL.Path)})
	}
}

// printable is text that may be in XML.
func printable(s string) string {
	if len(s) > 1100 {
		s = s[:1100]
	}
	return strings.Map(func(c rune) rune {
		if c == utf8.RuneError || c < ' ' {
			return '?'
		}
		return c
	}, s)
}

func reply(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	b.WriteString(xml.Header)
	if err := xml.NewEncoder(&b).Encode(v); err != nil {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

func (c *call) serve() error {
	h, r := c.h, c.r
	at := time.Now()
	if h.Now != nil {
		at = h.Now()
	}
	path, ok := strings.CutPrefix(r.URL.Path, h.Prefix)
	if !ok || path != "" && path[0] != '/' {
		return errf("AccessDenied", "There is nothing here")
	}
	s, apiErr := authenticate(r, h.Grants, at)
	if apiErr != nil {
		return apiErr
	}
	c.s = s
	c.bucket, c.key, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if err := checkKey(c.key); err != nil {
		return err
	}
	if c.bucket == "" {
		if r.Method != http.MethodGet {
			return errf("MethodNotAllowed", "The specified method is not allowed against this resource.")
		}
		return c.buckets()
	}
	denied := errf("AccessDenied", "Access Denied")
	if c.bucket != s.grant.Bucket {
		return denied
	}
	if c.key == "" {
		return c.serveBucket()
	}
	if !strings.HasPrefix(c.key, s.grant.Prefix) {
		return denied
	}
	return c.serveObject()
}

// maxKey is S3's.
const maxKey = 1024

// checkKey checks what the index takes any of, but XML and headers do not.
func checkKey(key string) error {
	if len(key) > maxKey {
		return errf("KeyTooLongError", "Your key is too long")
	}
	if !utf8.ValidString(key) || strings.ContainsFunc(key, func(c rune) bool {
		return c < ' ' && c != '\n' && c != '\t' && c != '\r' || c == 0xfffe || c == 0xffff
	}) {
		return errf("InvalidArgument", "A key must be UTF-8 without control characters")
	}
	return nil
}

// known are the parameters that change what a request means: one that is not
// served must not be taken for one without it.
var known = []string{"acl", "tagging", "policy", "cors", "lifecycle", "versioning", "versions", "versionId", "encryption", "object-lock", "retention",
	"legal-hold", "torrent", "restore", "select", "notification", "replication", "website", "logging", "requestPayment", "accelerate", "analytics",
	"inventory", "metrics", "ownershipControls", "publicAccessBlock", "intelligent-tiering", "attributes", "append", "renameObject", "session"}

func (c *call) serveBucket() error {
	for _, p := range known {
		if c.q.Has(p) {
			if p == "versioning" && c.r.Method == http.MethodGet {
				return c.xml(struct {
					XMLName xml.Name `xml:"VersioningConfiguration"`
				}{})
			}
			return errf("NotImplemented", "A header or parameter you provided implies functionality that is not implemented: "+p)
		}
	}
	switch {
	case c.r.Method == http.MethodPut:
		if c.s.grant.Prefix != "" || !c.s.grant.Delete {
			if ok, err := c.h.Store.HasBucket(c.bucket); err != nil || !ok {
				return cmp(err, errf("AccessDenied", "Access Denied"))
			}
			return errTaken
		}
		if err := c.h.Store.CreateBucket(c.bucket); err != nil {
			return err
		}
		c.w.Header().Set("Location", "/"+c.bucket)
		return nil
	case c.r.Method == http.MethodPost && c.q.Has("delete"):
		return c.deleteMany()
	}
	if ok, err := c.h.Store.HasBucket(c.bucket); err != nil || !ok {
		return cmp(err, errNoBucket)
	}
	switch {
	case c.r.Method == http.MethodHead:
		c.w.Header().Set("X-Amz-Bucket-Region", defaultRegion)
		return nil
	case c.r.Method == http.MethodGet && c.q.Has("location"):
		return c.xml(struct {
			XMLName xml.Name `xml:"LocationConstraint"`
		}{})
	case c.r.Method == http.MethodGet && c.q.Has("uploads"):
		return errf("NotImplemented", "Uploads are not listed")
	case c.r.Method == http.MethodGet:
		return c.list()
	}
	return errf("MethodNotAllowed", "The specified method is not allowed against this resource.")
}

func (c *call) xml(v any) error {
	reply(c.w, http.StatusOK, v)
	return nil
}

func (c *call) buckets() error {
	type bucket struct {
		Name         string
		CreationDate string
	}
	return c.xml(struct {
		XMLName xml.Name `xml:"ListAllMyBucketsResult"`
		Buckets []bucket `xml:"Buckets>Bucket"`
	}{Buckets: []bucket{{c.s.grant.Bucket, "1970-01-01T00:00:00.000Z"}}})
}

const maxKeys = 1000

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func quote(etag string) string { return `"` + etag + `"` }

func (c *call) list() error {
	prefix, delimiter := c.q.Get("prefix"), c.q.Get("delimiter")
	for _, v := range []string{prefix, delimiter, c.q.Get("start-after"), c.q.Get("marker")} {
		if err := checkKey(v); err != nil {
			return err
		}
	}
	scope := prefix
	if !strings.HasPrefix(prefix, c.s.grant.Prefix) {
		// An organization may be named without the slash, and sees itself.
		if prefix+"/" != c.s.grant.Prefix {
			return errf("AccessDenied", "Access Denied")
		}
		scope = c.s.grant.Prefix
	}
	limit := maxKeys
	if v := c.q.Get("max-keys"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return errf("InvalidArgument", "max-keys must be a number from 0")
		}
		limit = min(n, maxKeys)
	}
	v2 := c.q.Get("list-type") == "2"
	after := c.q.Get("marker")
	token := c.q.Get("continuation-token")
	if v2 {
		after = c.q.Get("start-after")
		if token != "" {
			raw, err := base64.RawURLEncoding.DecodeString(token)
			if err != nil || checkKey(string(raw)) != nil {
				return errf("InvalidArgument", "The continuation token provided is incorrect")
			}
			after = string(raw)
		}
	}
	entries, more, err := c.h.Store.List(c.bucket, scope, delimiter, after, limit)
	if err != nil {
		return err
	}
	encode := func(s string) string { return s }
	if c.q.Get("encoding-type") == "url" {
		encode = func(s string) string { return strings.ReplaceAll(escape(s, true), "%20", "+") }
	}
	type object struct {
		Key          string
		LastModified string
		ETag         string
		Size         int64
		StorageClass string
	}
	type common struct{ Prefix string }
	var out struct {
		XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
		Name                  string
		Prefix                string
		Marker                *string `xml:",omitempty"`
		NextMarker            string  `xml:",omitempty"`
		StartAfter            string  `xml:",omitempty"`
		ContinuationToken     string  `xml:",omitempty"`
		NextContinuationToken string  `xml:",omitempty"`
		KeyCount              *int    `xml:",omitempty"`
		MaxKeys               int
		Delimiter             string `xml:",omitempty"`
		EncodingType          string `xml:",omitempty"`
		IsTruncated           bool
		Contents              []object
		CommonPrefixes        []common
	}
	out.Name, out.Prefix, out.MaxKeys, out.Delimiter, out.EncodingType = c.bucket, encode(prefix), limit, encode(delimiter), c.q.Get("encoding-type")
	for _, e := range entries {
		if e.Object == nil {
			out.CommonPrefixes = append(out.CommonPrefixes, common{encode(e.Key)})
			continue
		}
		out.Contents = append(out.Contents, object{encode(e.Key), stamp(e.Object.Modified), quote(e.Object.ETag), e.Object.Size, "STANDARD"})
	}
	out.IsTruncated = more && limit > 0
	last := ""
	if n := len(entries); n > 0 {
		last = entries[n-1].Key
	}
	if v2 {
		out.KeyCount, out.StartAfter, out.ContinuationToken = new(len(entries)), encode(c.q.Get("start-after")), token
		if out.IsTruncated {
			out.NextContinuationToken = base64.RawURLEncoding.EncodeToString([]byte(last))
		}
	} else {
		out.Marker = new(encode(after))
		if out.IsTruncated {
			out.NextMarker = encode(last)
		}
	}
	return c.xml(out)
}

func (c *call) deleteMany() error {
	if !c.s.grant.Delete {
		return errf("AccessDenied", "Access Denied")
	}
	var in struct {
		Quiet  bool
		Object []struct{ Key, VersionId string }
	}
	if err := c.document(&in, 2<<20); err != nil {
		return err
	}
	if len(in.Object) == 0 || len(in.Object) > maxKeys {
		return errf("MalformedXML", "From 1 to 1000 objects may be named")
	}
	type deleted struct{ Key string }
	type failed struct{ Key, Code, Message string }
	var out struct {
		XMLName xml.Name `xml:"DeleteResult"`
		Deleted []deleted
		Error   []failed
	}
	for _, o := range in.Object {
		err := checkKey(o.Key)
		if err == nil && (o.Key == "" || !strings.HasPrefix(o.Key, c.s.grant.Prefix) || o.VersionId != "" && o.VersionId != "null") {
			err = errf("AccessDenied", "Access Denied")
		}
		if err == nil {
			err = c.h.Store.Delete(c.bucket, o.Key)
		}
		if err != nil {
			e := toAPI(err)
			out.Error = append(out.Error, failed{printable(o.Key), e.Code, e.Message})
		} else if !in.Quiet {
			out.Deleted = append(out.Deleted, deleted{o.Key})
		}
	}
	return c.xml(out)
}

// document reads a body of XML.
func (c *call) document(v any, most int64) error {
	body, err := c.body(most)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if xml.Unmarshal(data, v) != nil {
		return errf("MalformedXML", "The XML you provided was not well-formed")
	}
	return nil
}

func (c *call) serveObject() error {
	for _, p := range known {
		if c.q.Has(p) && !(p == "versionId" && c.q.Get(p) == "null") {
			return errf("NotImplemented", "A header or parameter you provided implies functionality that is not implemented: "+p)
		}
	}
	id := c.q.Get("uploadId")
	switch m := c.r.Method; {
	case m == http.MethodPut && c.q.Has("partNumber"):
		return c.putPart(id)
	case m == http.MethodPut:
		return c.put()
	case m == http.MethodPost && c.q.Has("uploads"):
		headers, err := c.headers()
		if err != nil {
			return err
		}
		if id, err = c.h.Store.StartUpload(c.bucket, c.key, headers); err != nil {
			return err
		}
		return c.xml(struct {
			XMLName               xml.Name `xml:"InitiateMultipartUploadResult"`
			Bucket, Key, UploadId string
		}{Bucket: c.bucket, Key: c.key, UploadId: id})
	case m == http.MethodPost && id != "":
		return c.complete(id)
	case m == http.MethodDelete && id != "":
		if err := c.h.Store.Abort(c.bucket, c.key, id); err != nil {
			return err
		}
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	case m == http.MethodDelete:
		if !c.s.grant.Delete {
			return errf("AccessDenied", "Access Denied")
		}
		if err := c.h.Store.Delete(c.bucket, c.key); err != nil {
			return err
		}
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	case m == http.MethodGet && id != "":
		return c.parts(id)
	case m == http.MethodGet || m == http.MethodHead:
		return c.get()
	}
	return errf("MethodNotAllowed", "The specified method is not allowed against this resource.")
}

// kept are the headers that an object has.
var kept = []string{"Content-Type", "Content-Disposition", "Content-Language", "Cache-Control", "Expires", "Content-Encoding"}

// maxMeta is how much a client's own headers may take, as in S3.
const maxMeta = 2 << 10

func (c *call) headers() (map[string]string, error) {
	m := map[string]string{}
	for _, name := range kept {
		v := c.r.Header.Get(name)
		if name == "Content-Encoding" {
			// The encoding of the body on the way is no part of the object.
			v = strings.Join(slices.DeleteFunc(strings.Split(strings.ReplaceAll(v, " ", ""), ","), func(e string) bool { return e == "aws-chunked" }), ",")
		}
		if len(v) > maxMeta {
			return nil, errf("MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size")
		}
		if v != "" {
			m[name] = v
		}
	}
	n := 0
	for name, values := range c.r.Header {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			v := strings.Join(values, ",")
			if n += len(name) + len(v); n > maxMeta {
				return nil, errf("MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size")
			}
			m[name] = v
		}
	}
	for _, name := range []string{"X-Amz-Server-Side-Encryption-Customer-Algorithm", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "X-Amz-Object-Lock-Mode", "X-Amz-Tagging", "X-Amz-Website-Redirect-Location"} {
		if c.r.Header.Get(name) != "" {
			return nil, errf("NotImplemented", "A header you provided implies functionality that is not implemented: "+name)
		}
	}
	return m, nil
}

// body is the body of a request without its framing. It ends with an error if it
// is not what was said or signed.
func (c *call) body(most int64) (io.Reader, error) {
	r := c.r
	limit := c.h.MaxObject
	if limit == 0 {
		limit = 5 << 30
	}
	if most > 0 {
		limit = min(limit, most)
	}
	stall := c.h.Stall
	if stall == 0 {
		stall = time.Minute
	}
	var body io.Reader = &patient{r: r.Body, c: http.NewResponseController(c.w), stall: stall}
	length := r.ContentLength
	want := r.Header
	trailers := http.Header{}
	switch c.s.payload {
	case streaming, streamingTrailer, streamingUnsignTrailer:
		var err error
		if length, err = strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64); err != nil || length < 0 {
			return nil, errf("MissingContentLength", "You must provide the header x-amz-decoded-content-length")
		}
		var signer *chunkSigner
		if c.s.payload != streamingUnsignTrailer {
			signer = &chunkSigner{key: c.s.key, date: c.s.date, scope: c.s.scope, previous: c.s.signature}
		}
		into := trailers
		if c.s.payload == streaming {
			into = nil
		}
		body = newChunkedReader(body, signer, length, into)
	case unsigned:
	default:
		if raw, err := hex.DecodeString(c.s.payload); err != nil || len(raw) != 32 {
			return nil, errf("InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-… or a SHA-256")
		}
	}
	if length < 0 {
		return nil, errf("MissingContentLength", "You must provide the Content-Length HTTP header.")
	}
	if length > limit {
		return nil, errTooLarge
	}
	v := &verifier{r: body, limit: limit, hashes: map[string]hash.Hash{}, want: func() http.Header {
		h := want.Clone()
		for k, values := range trailers {
			h[http.CanonicalHeaderKey(k)] = values
		}
		return h
	}}
	announced := strings.ToLower(r.Header.Get("X-Amz-Trailer"))
	for name, make := range checksums {
		if r.Header.Get(name) != "" || slices.Contains(strings.Split(strings.ReplaceAll(announced, " ", ""), ","), name) {
			v.hashes[name] = make()
		}
	}
	if len(c.s.payload) == 64 {
		v.hashes[""], v.sha256 = checksums["x-amz-checksum-sha256"](), c.s.payload
	}
	if r.Header.Get("Content-Md5") != "" {
		if raw, err := base64.StdEncoding.DecodeString(r.Header.Get("Content-Md5")); err != nil || len(raw) != md5.Size {
			return nil, errf("InvalidDigest", "The Content-MD5 you specified was invalid.")
		}
	}
	return v, nil
}

// patient reads a body whose sender must not be silent for long.
type patient struct {
	r     io.Reader
	c     *http.ResponseController
	stall time.Duration
	next  time.Time
}

func (p *patient) Read(b []byte) (int, error) {
	if now := time.Now(); now.After(p.next) {
		p.next = now.Add(p.stall / 4)
		p.c.SetReadDeadline(now.Add(p.stall)) // an answer that can't have one has none
	}
	n, err := p.r.Read(b)
	if err == io.EOF {
		p.c.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (c *call) put() error {
	if c.r.Header.Get("X-Amz-Copy-Source") != "" {
		return c.copy()
	}
	headers, err := c.headers()
	if err != nil {
		return err
	}
	body, err := c.body(0)
	if err != nil {
		return err
	}
	o, err := c.h.Store.Put(c.r.Context(), c.bucket, c.key, headers, body, c.condition())
	if err != nil {
		return err
	}
	c.stored(o, body)
	return nil
}

// condition is that of a write.
func (c *call) condition() precondition {
	match, none := c.r.Header.Get("If-Match"), c.r.Header.Get("If-None-Match")
	if match == "" && none == "" {
		return nil
	}
	return func(old *Object) error {
		failed := errf("PreconditionFailed", "At least one of the preconditions you specified did not hold.")
		if match != "" {
			if old == nil {
				return errNoKey
			}
			if !matches(match, old.ETag) {
				return failed
			}
		}
		if none != "" && old != nil && matches(none, old.ETag) {
			return failed
		}
		return nil
	}
}

func matches(list, etag string) bool {
	for e := range strings.SplitSeq(list, ",") {
		if e = strings.Trim(strings.TrimSpace(e), `"`); e == "*" || e == etag {
			return true
		}
	}
	return false
}

// stored answers with what was stored.
func (c *call) stored(o Object, body io.Reader) {
	h := c.w.Header()
	h.Set("ETag", quote(o.ETag))
	if v, ok := body.(*verifier); ok {
		want := v.want()
		for name := range v.hashes {
			if name != "" && name != "content-md5" {
				h.Set(name, want.Get(name))
			}
		}
	}
	c.w.WriteHeader(http.StatusOK)
}

func (c *call) number() (int, error) {
	n, err := strconv.Atoi(c.q.Get("partNumber"))
	if err != nil || n < 1 || n > 10000 {
		return 0, errf("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
	}
	return n, nil
}

func (c *call) putPart(id string) error {
	n, err := c.number()
	if err != nil {
		return err
	}
	if c.r.Header.Get("X-Amz-Copy-Source") != "" {
		src, from, err := c.source()
		if err != nil {
			return err
		}
		defer from.Close()
		var body io.Reader = from
		if v := c.r.Header.Get("X-Amz-Copy-Source-Range"); v != "" {
			first, last, ok := strings.Cut(strings.TrimPrefix(v, "bytes="), "-")
			a, errA := strconv.ParseInt(first, 10, 64)
			b, errB := strconv.ParseInt(last, 10, 64)
			if !ok || errA != nil || errB != nil || a < 0 || b < a || b >= src.Size {
				return errf("InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last, within the object")
			}
			body = io.NewSectionReader(from, a, b-a+1)
		}
		o, err := c.h.Store.PutPart(c.r.Context(), c.bucket, c.key, id, n, body)
		if err != nil {
			return err
		}
		return c.xml(struct {
			XMLName            xml.Name `xml:"CopyPartResult"`
			LastModified, ETag string
		}{LastModified: stamp(o.Modified), ETag: quote(o.ETag)})
	}
	body, err := c.body(0)
	if err != nil {
		return err
	}
	o, err := c.h.Store.PutPart(c.r.Context(), c.bucket, c.key, id, n, body)
	if err != nil {
		return err
	}
	c.stored(o, body)
	return nil
}

// file is what is read of an object.
type file interface {
	io.ReadSeekCloser
	io.ReaderAt
}

// source opens what is copied from: it must be where the grant is, too.
func (c *call) source() (Object, file, error) {
	raw := c.r.Header.Get("X-Amz-Copy-Source")
	raw, version, _ := strings.Cut(raw, "?")
	path, err := url.PathUnescape(raw)
	if err != nil || version != "" && version != "versionId=null" {
		return Object{}, nil, errf("InvalidArgument", "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if key == "" || checkKey(key) != nil {
		return Object{}, nil, errf("InvalidArgument", "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	if bucket != c.s.grant.Bucket || !strings.HasPrefix(key, c.s.grant.Prefix) {
		return Object{}, nil, errf("AccessDenied", "Access Denied")
	}
	o, f, err := c.h.Store.Open(bucket, key)
	if err != nil {
		return Object{}, nil, err
	}
	failed := func() (Object, file, error) {
		f.Close()
		return Object{}, nil, errf("PreconditionFailed", "At least one of the preconditions you specified did not hold.")
	}
	if m := c.r.Header.Get("X-Amz-Copy-Source-If-Match"); m != "" && !matches(m, o.ETag) {
		return failed()
	}
	if m := c.r.Header.Get("X-Amz-Copy-Source-If-None-Match"); m != "" && matches(m, o.ETag) {
		return failed()
	}
	return o, f, nil
}

func (c *call) copy() error {
	src, from, err := c.source()
	if err != nil {
		return err
	}
	defer from.Close()
	headers := src.Headers
	if strings.EqualFold(c.r.Header.Get("X-Amz-Metadata-Directive"), "REPLACE") {
		if headers, err = c.headers(); err != nil {
			return err
		}
	}
	o, err := c.h.Store.Put(c.r.Context(), c.bucket, c.key, headers, from, c.condition())
	if err != nil {
		return err
	}
	return c.xml(struct {
		XMLName            xml.Name `xml:"CopyObjectResult"`
		LastModified, ETag string
	}{LastModified: stamp(o.Modified), ETag: quote(o.ETag)})
}

func (c *call) complete(id string) error {
	var in struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	// Checksums are the object's here, not the body's: those of the parts have
	// been checked.
	for name := range checksums {
		if name != "content-md5" {
			c.r.Header.Del(name)
		}
	}
	if err := c.document(&in, 4<<20); err != nil {
		return err
	}
	if len(in.Part) == 0 || len(in.Part) > 10000 {
		return errf("MalformedXML", "From 1 to 10000 parts may be named")
	}
	want := make([]Want, len(in.Part))
	for i, p := range in.Part {
		want[i] = Want{p.PartNumber, p.ETag}
	}
	o, err := c.h.Store.Complete(c.r.Context(), c.bucket, c.key, id, want, c.condition())
	if err != nil {
		return err
	}
	return c.xml(struct {
		XMLName                     xml.Name `xml:"CompleteMultipartUploadResult"`
		Location, Bucket, Key, ETag string
	}{Location: "/" + c.bucket + "/" + c.key, Bucket: c.bucket, Key: c.key, ETag: quote(o.ETag)})
}

func (c *call) parts(id string) error {
	list, err := c.h.Store.Parts(c.bucket, c.key, id)
	if err != nil {
		return err
	}
	type part struct {
		PartNumber         int
		LastModified, ETag string
		Size               int64
	}
	var out struct {
		XMLName               xml.Name `xml:"ListPartsResult"`
		Bucket, Key, UploadId string
		MaxParts              int
		IsTruncated           bool
		PartNumberMarker      int
		NextPartNumberMarker  int
		Part                  []part
	}
	out.Bucket, out.Key, out.UploadId, out.MaxParts = c.bucket, c.key, id, maxKeys
	out.PartNumberMarker, _ = strconv.Atoi(c.q.Get("part-number-marker"))
	for _, p := range list {
		if p.Number <= out.PartNumberMarker {
			continue
		}
		if len(out.Part) == maxKeys {
			out.IsTruncated = true
			break
		}
		out.Part = append(out.Part, part{p.Number, stamp(p.Modified), quote(p.ETag), p.Size})
		out.NextPartNumberMarker = p.Number
	}
	return c.xml(out)
}

func (c *call) get() error {
	o, f, err := c.h.Store.Open(c.bucket, c.key)
	if err != nil {
		return err
	}
	defer f.Close()
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	for k, v := range o.Headers {
		if strings.HasPrefix(k, "X-Amz-Meta-") {
			k = strings.ToLower(k) // boto3 shows them as they are written here
		}
		h[k] = []string{v}
	}
	// What is stored is its clients' and must not run as a page of this server.
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("ETag", quote(o.ETag))
	if c.r.Method == http.MethodHead && c.r.Header.Get("Range") == "" {
		h.Set("Content-Length", strconv.FormatInt(o.Size, 10))
	}
	for param, name := range map[string]string{"response-content-type": "Content-Type", "response-content-disposition": "Content-Disposition", "response-cache-control": "Cache-Control"} {
		if v := c.q.Get(param); v != "" && !strings.ContainsAny(v, "\r\n") {
			h.Set(name, v)
		}
	}
	http.ServeContent(&s3Writer{ResponseWriter: c.w}, c.r, "", o.Modified.Truncate(time.Second), f)
	return nil
}

// s3Writer answers what [http.ServeContent] refuses as S3 does.
type s3Writer struct {
	http.ResponseWriter
	refused bool
}

func (w *s3Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *s3Writer) WriteHeader(status int) {
	code := map[int]string{412: "PreconditionFailed", 416: "InvalidRange"}[status]
	if code == "" {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.refused = true
	reply(w.ResponseWriter, status, struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}{Code: code, Message: http.StatusText(status)})
}

func (w *s3Writer) Write(b []byte) (int, error) {
	if w.refused {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// ReadFrom lets the kernel send files.
func (w *s3Writer) ReadFrom(r io.Reader) (int64, error) {
	if w.refused {
		return io.Copy(io.Discard, r)
	}
	return io.Copy(w.ResponseWriter, r)
}
