# frozen_string_literal: true

require 'minitest/autorun'
require 'digest'
require 'json'
require_relative 'lib/release'

# The list of components that scripts/dist puts beside the static binaries.
class SbomTest < Minitest::Test
  SCRIPT = File.expand_path('../../scripts/lib/sbom.rb', __dir__)

  def setup
    @directory = Dir.mktmpdir
    File.write("#{@directory}/portcullisctl", "program\n")
    output, status = Open3.capture2(SCRIPT, 'x86_64-unknown-linux-gnu', @directory, '-p', 'ctl',
                                    chdir: File.dirname(Release::ROOT))
    assert_predicate status, :success?
    @sbom = JSON.parse(output)
    @components = @sbom['components'].to_h { |component| [component['name'], component] }
  end

  def teardown = FileUtils.rm_rf(@directory)

  def test_components
    assert_equal %w[CycloneDX 1.5], @sbom.values_at('bomFormat', 'specVersion')
    program = @components.fetch('portcullisctl')
    assert_equal Digest::SHA256.hexdigest("program\n"), program['hashes'].first['content']
    tokio = @components.fetch('tokio')
    assert_equal "pkg:cargo/tokio@#{tokio['version']}", tokio['purl']
    lock = File.read("#{File.dirname(Release::ROOT)}/Cargo.lock")
    assert_includes lock, "name = \"tokio\"\nversion = \"#{tokio['version']}\""
    assert_includes lock, "checksum = \"#{tokio['hashes'].first['content']}\""
    assert_match(/\A2\.\d+\z/, @components.fetch('glibc')['version'])
    # Not compiled for this selection.
    refute_includes @components, 'rusqlite'
  end

  def test_every_component_has_a_licence
    without = @components.values.reject { |component| component['licenses'] }
    assert_empty without.map { |component| component['name'] }
    expressions = @components.values.map { |component| component['licenses'].first['expression'] }
    assert_empty expressions.grep(%r{/}), 'SPDX has no slash'
  end

  # References are unique, and each edge leads to a component.
  def test_dependencies
    names = @sbom['components'].map { |component| component['bom-ref'] }
    assert_equal names.uniq, names
    edges = @sbom['dependencies'].to_h { |edge| [edge['ref'], edge['dependsOn']] }
    assert_empty edges.keys + edges.values.flatten - names - ['portcullis']
    assert_equal ['program:portcullisctl'], edges['portcullis']
    crate = @components.fetch('ctl')['bom-ref']
    assert_match(/\Acrate:ctl@/, crate)
    assert_equal [crate, 'glibc'], edges['program:portcullisctl']
  end
end
