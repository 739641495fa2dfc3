# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/release'

# Which database and which listeners the policy store's job configures.
class PolicyStoreTest < Minitest::Test
  JOB = 'policy-store'
  CA_FILE = '/var/vcap/jobs/policy-store/config/certs/database_ca.crt'

  def test_the_database_of_the_policy_server
    files = Release.render(JOB, 'minimal')
    assert_equal({ 'type' => 'mysql', 'host' => 'sql-db.service.cf.internal', 'port' => 3306,
                   'database_name' => 'network_policy', 'user' => 'network_policy',
                   'password' => "p@ss/w:rd?#%41 +\"", 'require_ssl' => true,
                   'skip_hostname_validation' => false, 'ca_cert' => CA_FILE,
                   'timeout' => 120, 'start_timeout' => 300, 'max_open_connections' => 20,
                   'write_original_tables' => true },
                 config(files)['database'])
    assert_equal "DB_CA\n", files['config/certs/database_ca.crt']
    assert_equal 1, config(files)['tag_length']
  end

  def test_the_host_of_the_database_job
    assert_equal 'q-i0.database.default.cf.bosh', config(Release.render(JOB, 'hostless'))['database']['host']
  end

  def test_another_database_wins_over_the_link
    change = { 'portcullis' => { 'database' => {
      'type' => 'postgres', 'host' => 'db.internal', 'port' => 5432, 'name' => 'store', 'username' => 'u', 'password' => 'p'
    } } }
    files = Release.render(JOB, 'minimal', change)
    assert_equal %w[postgres db.internal store], config(files)['database'].values_at('type', 'host', 'database_name')
    assert_equal "\n", files['config/certs/database_ca.crt']
    refute config(files)['database']['write_original_tables']
  end

  # Their default is on with policy-server's database only.
  def test_the_tables_of_policy_server
    off = { 'portcullis' => { 'database' => { 'write_original_tables' => false } } }
    refute config(Release.render(JOB, 'minimal', off))['database']['write_original_tables']
    assert config(Release.render(JOB, 'full'))['database']['write_original_tables']
    refute config(Release.render(JOB, 'sqlite', off))['database'].key?('write_original_tables')
  end

  def test_a_file_on_the_persistent_disk
    files = Release.render(JOB, 'sqlite')
    assert_equal({ 'type' => 'sqlite', 'path' => '/var/vcap/store/policy-store/policy-store.db' }, config(files)['database'])
    assert process(files)['persistent_disk']
    refute process(Release.render(JOB, 'minimal')).key?('persistent_disk')
  end

  def test_listeners
    minimal = config(Release.render(JOB, 'minimal'))
    assert_equal ['0.0.0.0:4004', '0.0.0.0', 4003], minimal.values_at('grpc_listen_address', 'listen_host', 'internal_listen_port')
    refute config(Release.render(JOB, 'sqlite')).key?('internal_listen_port')
    assert_equal '[::1]:4014', config(Release.render(JOB, 'full'))['grpc_listen_address']
  end

  def test_identities
    minimal = config(Release.render(JOB, 'minimal'))
    assert_equal ['cn=portcullis-cell', 'ou=cell'], minimal['cell_identities']
    assert_equal 'any', minimal['cell_id_from']
    refute minimal.key?('internal_api_identities'), 'any certificate of the CA, as with the original'
    assert_equal [], config(Release.render(JOB, 'full'))['operator_identities']
  end

  def test_links_that_cannot_be_used
    dbconn = Release.fixture(JOB, 'minimal')['links']['dbconn']
    assert_bad_links({ 'dbconn' => merged(dbconn, 'ca_cert' => nil) },
                     'database.require_ssl of the link dbconn is true, but its database.ca_cert is not set')
    assert_bad_links({ 'dbconn' => merged(dbconn, 'host' => nil) },
                     'database.host of the link dbconn is not set, and there is no link database')
    tags = { 'address' => 'a', 'instances' => [], 'properties' => { 'tag_length' => 4 } }
    assert_bad_links({ 'dbconn' => dbconn, 'tag_length' => tags },
                     "tag_length of the link tag_length must be from 1 to 3, but is '4'")
  end

  private

  def merged(dbconn, change)
    Release.merge(dbconn, 'properties' => { 'database' => change })
  end

  def assert_bad_links(links, message)
    properties = Release.fixture(JOB, 'minimal')['properties']
    error = assert_raises(RuntimeError) { Release.job(JOB).render(properties: properties, links: links) }
    assert_equal message, error.message
  end

  def config(files) = JSON.parse(files["config/#{JOB}.json"])
  def process(files) = YAML.safe_load(files['config/bpm.yml'])['processes'].first
end
