# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/checks'
require_relative 'lib/manifest'

# The operations files on a manifest of cf-deployment's shape: each combination gives a
# manifest that the director accepts, and its jobs render and are accepted by the programs.
class OpsTest < Minitest::Test
  include Checks

  RELEASE = %w[use-portcullis-release].freeze
  LOCKET = (RELEASE + %w[swap-locket]).freeze
  STORE = (LOCKET + %w[add-policy-store swap-asg-syncer]).freeze
  CELLS = (STORE + %w[swap-vxlan-policy-agent]).freeze
  ALL = (RELEASE + %w[swap-all]).freeze
  INSTEAD = %w[swap-locket swap-policy-server-internal swap-asg-syncer].freeze
  POSTGRES = %w[cf-deployment/use-postgres].freeze

  # In the order in which the jobs are swapped, then what can be added.
  COMBINATIONS = {
    'nothing' => [],
    'release' => RELEASE,
    'locket' => LOCKET,
    'policy store and syncer' => STORE,
    'first cells' => STORE + %w[cf-deployment/isolation-segment swap-vxlan-policy-agent-isolated],
    'cells' => CELLS,
    'cells and first cells' => CELLS + %w[cf-deployment/isolation-segment swap-vxlan-policy-agent-isolated],
    'all' => ALL,
    'policy store instead' => RELEASE + INSTEAD,
    'policy store first beside, then instead' => CELLS + %w[swap-policy-server-internal],
    'no original' => ALL + %w[swap-policy-server-internal remove-vxlan-policy-agent],
    'operators alone' => RELEASE + %w[add-portcullisctl],
    'all on postgres' => POSTGRES + ALL,
    'own database on mysql' => ALL + %w[use-mysql],
    'own database on postgres' => POSTGRES + ALL + %w[use-postgres],
    'embedded database' => %w[cf-deployment/scale-to-one-az] + ALL + %w[use-embedded-database],
    'nftables' => ALL + %w[nftables],
    'speed' => ALL + %w[speed],
    'prometheus' => ALL + %w[prometheus],
    'smoke tests' => ALL + %w[smoke-tests],
    'everything optional' => ALL + %w[use-mysql nftables speed prometheus smoke-tests],
    'static groups' => ALL + %w[disable-dynamic-asgs]
  }.freeze

  # A file without what its header asks for, and what the operator reads.
  INCOMPLETE = {
    'add-policy-store' => 'release portcullis is not in the manifest',
    'swap-locket' => 'release portcullis is not in the manifest',
    'swap-policy-server-internal' => 'release portcullis is not in the manifest',
    'swap-asg-syncer' => 'release portcullis is not in the manifest',
    'swap-vxlan-policy-agent' => 'release portcullis is not in the manifest',
    'swap-all' => 'release portcullis is not in the manifest',
    'smoke-tests' => 'release portcullis is not in the manifest',
    'add-portcullisctl' => 'release portcullis is not in the manifest',
    'swap-vxlan-policy-agent-isolated' => 'name=isolated-diego-cell',
    'remove-vxlan-policy-agent' => 'name=cell-agent',
    'nftables' => 'name=cell-agent',
    'speed' => 'name=cell-agent',
    'disable-dynamic-asgs' => 'name=cell-agent',
    'prometheus' => 'name=policy-store',
    'use-mysql' => 'name=policy-store',
    'use-postgres' => 'name=postgres',
    'use-embedded-database' => 'name=policy-store'
  }.freeze

  @checked = {}
  class << self
    attr_reader :checked
  end

  COMBINATIONS.each do |name, files|
    define_method("test_manifest_of_#{name}") { check_manifest(Manifest.with(*files)) }
  end

  INCOMPLETE.each do |file, sentence|
    define_method("test_incomplete_#{file}") { assert_match(sentence, fault_of(file)) }
  end

  def test_every_file_is_used_and_described
    files = Dir.children(Manifest::OPS).map { |file| File.basename(file, '.yml') }.sort
    assert_empty files - COMBINATIONS.values.flatten
    assert_equal files - RELEASE, INCOMPLETE.keys.sort
    files.each do |file|
      header = File.readlines("#{Manifest::OPS}/#{file}.yml").drop(1).take_while { |line| line.start_with?('#') }
      assert(header.any? { |line| line.start_with?('# Before: ') }, "#{file}: Before")
      assert(header.any? { |line| line.start_with?('# Undo:   ') }, "#{file}: Undo")
      missing = header.join.scan(/(?<![\w.*-])[a-z-]+\.yml/).uniq.reject { |name| file?(name) }
      assert_empty missing, "#{file} names files that do not exist"
    end
  end

  def test_swap_all_is_the_single_files
    single = %w[swap-locket add-policy-store swap-asg-syncer swap-vxlan-policy-agent add-portcullisctl]
    assert_equal single.flat_map { |file| operations(file) }, operations('swap-all')
  end

  def test_the_isolated_cells_get_the_same_as_all
    all = YAML.dump(operations('swap-vxlan-policy-agent')).gsub('/name=diego-cell', '/name=isolated-diego-cell')
    isolated = YAML.safe_load(YAML.dump(operations('swap-vxlan-policy-agent-isolated')))
    agent = isolated.find { |operation| operation['path'].end_with?('name=cell-agent?') }['value']
    assert_equal({ 'vpa' => 'nil' }, agent.delete('provides'))
    assert_equal YAML.safe_load(all), isolated
  end

  # silk-cni and silk-daemon call the agent that enforces security groups, on its port.
  def test_silk_gets_the_link_of_the_swapped_agent
    { [] => 'client_cert CN=clientName', CELLS => 'client_cert CN=portcullis-cell' }.each do |files, expected|
      manifest = Manifest.with(*files)
      %w[silk-cni silk-daemon].each do |name|
        vpa = link(manifest, 'diego-cell', name, 'vpa')['properties']
        assert_equal 8722, vpa['force_policy_poll_cycle_port']
        assert_equal expected, "client_cert #{certificate(vpa['client_cert']).subject.to_s.delete_prefix('/')}"
      end
    end
  end

  def test_no_port_twice_on_a_vm
    manifest = Manifest.with(*CELLS)
    names = %w[debug_server_port force_policy_poll_cycle_port]
    ports = manifest.job('diego-cell', 'vxlan-policy-agent')['properties'].values_at(*names)
    agent = config(manifest, 'diego-cell', 'cell-agent')
    assert_equal "127.0.0.1:#{ports.last}", agent['policy_agent_address']
    assert_equal 4, (ports + agent.values_at(*names)).uniq.length

    store = config(manifest, 'api', 'policy-store')
    refute store.key?('internal_listen_port')
    taken = [4002, 4003, 4004, 31_945, 31_946, 31_821, 17_019]
    assert_empty store.values_at('debug_server_port', 'health_check_port') & taken
  end

  def test_policy_store_takes_the_place_of_policy_server_internal
    manifest = Manifest.with(*COMBINATIONS['policy store instead'])
    refute manifest.job('api', 'policy-server-internal')
    store = config(manifest, 'api', 'policy-store')
    assert_equal [4003, 31_945, 31_946], store.values_at('internal_listen_port', 'debug_server_port', 'health_check_port')
  end

  # policy-server-internal beside the store, and after a roll back, reads policy-server's tables.
  def test_the_store_writes_the_tables_of_policy_server
    { STORE => true, POSTGRES + ALL => true, COMBINATIONS['policy store instead'] => true,
      COMBINATIONS['own database on mysql'] => false, COMBINATIONS['embedded database'] => nil }.each do |files, expected|
      database = config(Manifest.with(*files), 'api', 'policy-store')['database']
      expected.nil? ? refute(database.key?('write_original_tables')) : assert_equal(expected, database['write_original_tables'])
    end
  end

  def test_databases
    { ALL => %w[mysql network_policy], POSTGRES + ALL => %w[postgres network_policy],
      COMBINATIONS['own database on mysql'] => %w[mysql portcullis],
      COMBINATIONS['own database on postgres'] => %w[postgres portcullis] }.each do |files, expected|
      database = config(Manifest.with(*files), 'api', 'policy-store')['database']
      assert_equal expected, database.values_at('type', 'database_name')
      assert_equal expected.first == 'mysql', database['require_ssl']
    end
    embedded = Manifest.with(*COMBINATIONS['embedded database'])
    assert_equal 'sqlite', config(embedded, 'api', 'policy-store')['database']['type']
    assert_equal 'sqlite', config(embedded, 'diego-api', 'locket')['database_driver']
    %w[api diego-api].each { |group| assert embedded.group(group)['persistent_disk_type'] }
  end

  # The director ignores a property that no spec names; a misspelt one has no effect.
  def test_properties_of_ours_stand_in_the_specs
    COMBINATIONS.each_value do |files|
      Manifest.with(*files).ours.each do |_, job|
        given = leaves(job.fetch('properties', {}))
        given = given.grep(/\Aportcullis\./) if %w[locket policy-server-asg-syncer].include?(job['name'])
        assert_empty given - Release.job(job['name']).declared.keys, "#{job['name']} with #{files.last}"
      end
    end
  end

  def test_static_groups_stop_the_syncer_and_the_agents
    manifest = Manifest.with(*COMBINATIONS['static groups'])
    refute config(manifest, 'diego-cell', 'cell-agent')['enable_asg_syncing']
    refute manifest.properties(manifest.job('diego-cell', 'vxlan-policy-agent'))['enable_asg_syncing']
    files = manifest.render(manifest.group('api'), manifest.job('api', 'policy-server-asg-syncer'))
    assert_empty files['monit'].strip
  end

  # What would make the director refuse a manifest is found.
  def test_faults
    cell = '/instance_groups/name=diego-cell/jobs'
    assert_fault 'variable portcullis_cell is not defined', 'remove', '/variables/name=portcullis_cell'
    assert_fault 'job cell-agent of diego-cell provides no link agent',
                 'replace', "#{cell}/name=cell-agent/provides?/agent", 'nil'
    assert_fault 'job silk-daemon of diego-cell needs the link vpa',
                 'replace', "#{cell}/name=silk-daemon/consumes?/vpa", 'nil'
    assert_fault 'job silk-daemon of diego-cell consumes vpa of type policy-agent, which has 2 providers ' \
                 'job vxlan-policy-agent of diego-cell, job cell-agent of diego-cell',
                 'remove', "#{cell}/name=vxlan-policy-agent/provides"
    assert_fault 'job policy-server-asg-syncer of api consumes cloud_controller_mtls_endpoint of type ' \
                 'cloud_controller_mtls_endpoint, which has 0 providers',
                 'remove', '/instance_groups/name=api/jobs/name=cloud_controller_ng'
    assert_fault 'job of diego-cell rep is there twice', 'replace', "#{cell}/-", { 'name' => 'rep', 'release' => 'diego' }
    assert_fault 'release other is not in the manifest', 'replace', "#{cell}/name=rep/release", 'other'
  end

  private

  def assert_fault(sentence, type, path, value = nil)
    operation = { 'type' => type, 'path' => path, 'value' => value }.compact
    assert_includes Manifest.with(*CELLS).apply([operation]).faults, sentence
  end

  def leaves(properties, prefix = nil)
    properties.flat_map do |key, value|
      name = [prefix, key].compact.join('.')
      value.is_a?(Hash) ? leaves(value, name) : [name]
    end
  end

  def check_manifest(manifest)
    assert_empty manifest.faults
    manifest.ours.each do |group, job|
      check_job(job['name'], manifest.render(group, job), disabled: manifest.properties(job)['disable'])
    end
    assert_empty unknown_hosts(manifest)
    check_certificates(manifest) if manifest.job('api', 'policy-store')
  end

  # Names of the foundation that are no DNS alias.
  def unknown_hosts(manifest)
    aliases = manifest.document['addons'].flat_map { |addon| addon['jobs'] }
                      .find { |job| job['name'] == 'bosh-dns-aliases' }['properties']['aliases']
    known = aliases.map { |entry| entry['domain'] }
    rendered = manifest.ours.flat_map { |group, job| manifest.render(group, job).select { |file,| file.end_with?('.json') }.values }
    used = manifest.jobs.map { |_, job| JSON.generate(job.fetch('properties', {})) } + rendered
    used.join.scan(/[\w.-]+\.service\.cf\.internal/).uniq - known
  end

  # Equal files are checked once: a combination changes few of them.
  def check_job(name, files, disabled:)
    key = [name, files.reject { |file, _| file.start_with?('config/certs/') }]
    self.class.checked[key] ||= begin
      disabled ? check_disabled(name, files) : check_files(name, files)
      true
    end
  end

  # Each client of the policy store has a certificate that the store accepts, for its role.
  def check_certificates(manifest)
    store = files(manifest, 'api', 'policy-store')
    server = certificate(store['config/certs/server.crt'])
    identities = JSON.parse(store['config/policy-store.json'])
    assert OpenSSL::SSL.verify_certificate_identity(server, 'policy-server.service.cf.internal')
    clients(manifest).each do |group, name, certificates, role|
      ca, client = files(manifest, group, name).values_at(*certificates.map { |file| "config/certs/#{file}" })
      next if client.strip.empty?

      client = certificate(client)
      assert trusted?(ca, server), "#{name} trusts the policy store"
      assert trusted?(store['config/certs/ca.crt'], client), "the policy store trusts #{name}"
      assert_includes identities[role], client.subject.to_s.sub(%r{\A/CN=}, 'cn=')
    end
  end

  def clients(manifest)
    [['api', 'policy-server-asg-syncer', %w[policy_store_ca.crt policy_store.crt], 'writer_identities'],
     ['diego-cell', 'cell-agent', %w[ca.crt client.crt], 'cell_identities'],
     ['isolated-diego-cell', 'cell-agent', %w[ca.crt client.crt], 'cell_identities'],
     ['api', 'portcullisctl', %w[policy_store/ca.crt policy_store/client.crt], 'operator_identities']]
      .select { |group, name,| manifest.ours.any? { |its, job| [its['name'], job['name']] == [group, name] } }
  end

  def trusted?(authorities, certificate)
    store = OpenSSL::X509::Store.new
    store.add_cert(certificate(authorities))
    store.verify(certificate)
  end

  def certificate(text) = OpenSSL::X509::Certificate.new(text)
  def files(manifest, group, name) = manifest.render(manifest.group(group), manifest.job(group, name))
  def config(manifest, group, name) = JSON.parse(files(manifest, group, name)["config/#{name}.json"])
  def link(manifest, group, name, link) = manifest.links(manifest.group(group), manifest.job(group, name))[link]
  def operations(file) = YAML.safe_load_file("#{Manifest::OPS}/#{file}.yml", aliases: true)

  # What the operator reads who deploys with this file alone.
  def fault_of(file)
    Manifest.with(file).faults.join("\n")
  rescue GoPatch::Error => e
    e.message
  end

  def file?(name)
    [Manifest::OPS, Manifest::FIXTURES].any? { |directory| File.exist?("#{directory}/#{name}") } ||
      %w[add-persistent-isolation-segment-diego-cell.yml speed-up-dynamic-asgs.yml].include?(name)
  end
end
