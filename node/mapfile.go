package node

// word is a scalar and its place.
type word struct {
	text string
	at   position
}

func (w *word) decodeItem(d *decoder, it *item, path string) {
	w.at = it.at
	if it.kind == nullItem {
		return
	}
	if d.want(scalarItem, it, path) {
		w.text = it.text
	}
}

// problem is about this word.
func (w word) problem(field, msg string) Problem { return w.at.problem(field, w.text, msg) }

// mapFile is map.yaml as written: nothing in it is checked but its shape.
type mapFile struct {
	Zone    word        `yaml:"zone"`
	Ranges  []word      `yaml:"ranges"`
	TTL     word        `yaml:"ttl"`
	Version uint64      `yaml:"version"`
	Nodes   nodesBlock  `yaml:"nodes"`
	Records recordBlock `yaml:"records"`
	DNS     mapDNS      `yaml:"dns"`
	Policy  policyBlock `yaml:"policy"`
	Force   force       `yaml:"force"`
}

// nodeFile is one entry of nodes; name is its key.
type nodeFile struct {
	name      word
	Addresses []word      `yaml:"addresses"`
	Key       word        `yaml:"key"`
	Endpoints []word      `yaml:"endpoints"`
	Names     []word      `yaml:"names"`
	Wildcard  bool        `yaml:"wildcard"`
	Gateway   gatewayFile `yaml:"gateway"`
	Tags      []word      `yaml:"tags"`
}

// gatewayFile marks a node as a gateway by being there.
type gatewayFile struct {
	given  bool
	public []word
}

func (g *gatewayFile) decodeItem(d *decoder, it *item, path string) {
	if it.kind == scalarItem && it.text == "false" {
		return
	}
	g.given = true
	if it.kind == nullItem || it.kind == scalarItem && it.text == "true" {
		return
	}
	var fields struct {
		Public []word `yaml:"public"`
	}
	d.into(it, path, &fields)
	g.public = fields.Public
}

// nodesBlock keeps the nodes in the order of the file.
type nodesBlock []nodeFile

func (b *nodesBlock) decodeItem(d *decoder, it *item, path string) {
	if it.kind == nullItem || !d.want(mappingItem, it, path) {
		return
	}
	for i, key := range it.keys {
		if key.twice {
			continue
		}
		n := nodeFile{name: word{text: key.text, at: key.at}}
		d.into(it.items[i], join(path, key.text), &n)
		*b = append(*b, n)
	}
}

// mapDNS is the dns block.
type mapDNS struct {
	Routes    routesBlock `yaml:"routes"`
	Upstreams []word      `yaml:"upstreams"`
	Search    []word      `yaml:"search"`
}

// routeFile is one split route.
type routeFile struct {
	suffix    word
	upstreams []word
}

type routesBlock []routeFile

func (b *routesBlock) decodeItem(d *decoder, it *item, path string) {
	if it.kind == nullItem || !d.want(mappingItem, it, path) {
		return
	}
	for i, key := range it.keys {
		if key.twice {
			continue
		}
		r := routeFile{suffix: word{text: key.text, at: key.at}}
		d.into(it.items[i], join(path, key.text), &r.upstreams)
		*b = append(*b, r)
	}
}

// recordBlock is zone-file text and where its lines stand.
type recordBlock struct {
	text  string
	at    position // of the text itself if literal, else of the value
	block bool     // literal: its lines are lines of the file
}

func (b *recordBlock) decodeItem(d *decoder, it *item, path string) {
	if it.kind == nullItem || !d.want(scalarItem, it, path) {
		return
	}
	*b = recordBlock{text: it.text, at: it.at, block: it.block}
	if it.block {
		b.at.line++
	}
}

// policyBlock is what the policy says, as plain Go values. Who reads it knows its keys; here only those are looked at that
// name nodes.
type policyBlock struct {
	at     position
	values map[string]any
	allow  []grantFile
	listed bool // there is an allow list, be it empty

	funnel    []showFile
	funnelled bool // there is such a list, be it empty
	names     nameGrantsBlock
	named     bool
}

func (b *policyBlock) decodeItem(d *decoder, it *item, path string) {
	b.at = it.at
	if it.kind == nullItem || !d.want(mappingItem, it, path) {
		return
	}
	b.values = map[string]any{}
	for i, key := range it.keys {
		b.values[key.text] = plain(it.items[i])
		switch key.text {
		case "names":
			b.named = true
			d.into(it.items[i], join(path, key.text), &b.names)
		case "funnel":
			b.funnelled = true
			d.into(it.items[i], join(path, key.text), &b.funnel)
		case "allow":
			b.listed = true
			d.into(it.items[i], join(path, key.text), &b.allow)
		}
	}
}

// plain is an item as nil, string, []any or map[string]any.
func plain(it *item) any {
	switch it.kind {
	case scalarItem:
		return it.text
	case sequenceItem:
		list := make([]any, len(it.items))
		for i, v := range it.items {
			list[i] = plain(v)
		}
		return list
	case mappingItem:
		m := make(map[string]any, len(it.keys))
		for i, key := range it.keys {
			m[key.text] = plain(it.items[i])
		}
		return m
	default:
		return nil
	}
}

// force lists the names that the map's owner wants although rule S12 refuses them.
type force struct {
	all   bool
	names map[string]bool
}

func (f *force) decodeItem(d *decoder, it *item, path string) {
	if it.kind == scalarItem && (it.text == "true" || it.text == "false") {
		f.all = it.text == "true"
		return
	}
	var words []word
	d.into(it, path, &words)
	f.names = make(map[string]bool, len(words))
	for _, w := range words {
		f.names[foldName(w.text)] = true
	}
}

func (f force) has(name string) bool { return f.all || f.names[name] }
